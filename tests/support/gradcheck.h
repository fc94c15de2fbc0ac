#pragma once
#include <functional>
#include <string>

#include "engine/sample.h"

namespace margay::test {

struct GradcheckOptions {
  double step = 1e-6;
  double absolute = 1e-7, relative = 1e-5;
  size_t elements = 400;  ///< of an input: of longer ones evenly spread elements are checked, twice as many at most
};

/// Compares the gradients of `call` at f64 `inputs` with central differences, for every float input marked in
/// `differentiable`, under random cotangents for all float outputs. Returns a description of the first disagreement;
/// empty if there is none.
std::string gradcheck(const std::function<Tensors(const Tensors&)>& call, const Tensors& inputs,
                      const std::vector<bool>& differentiable, const GradcheckOptions& options = {});

/// The inputs of a sample for a float dtype and device; the same values, up to rounding, for every dtype.
Tensors make_inputs(const Sample& sample, DType float_dtype, Device device = {});
/// Which of the sample's inputs have gradients.
std::vector<bool> differentiable_inputs(const Sample& sample);

}  // namespace margay::test
