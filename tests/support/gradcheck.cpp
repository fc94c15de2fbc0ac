#include "tests/support/gradcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

// sum over outputs of <output, cotangent>, in f64 on the host.
double inner_product(const Tensors& outputs, const Tensors& cotangents) {
  double sum = 0;
  for (size_t k = 0; k < outputs.size(); ++k) {
    if (!cotangents[k].defined()) continue;
    const auto y = outputs[k].detach().to_vector<double>(), c = cotangents[k].to_vector<double>();
    sum = std::inner_product(y.begin(), y.end(), c.begin(), sum);
  }
  return sum;
}

}  // namespace

std::string gradcheck(const std::function<Tensors(const Tensors&)>& call, const Tensors& inputs,
                      const std::vector<bool>& differentiable, const GradcheckOptions& options) {
  Tensors leaves;
  for (size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].detach());
    if (differentiable[i]) leaves.back().set_requires_grad();
  }
  const Tensors outputs = call(leaves);
  Tensors cotangents;
  for (size_t k = 0; k < outputs.size(); ++k) {
    const bool has_gradient = outputs[k].defined() && outputs[k].requires_grad();
    cotangents.push_back(has_gradient ? random_uniform(outputs[k].shape(), 1000 + k).to(outputs[k].device())
                                      : Tensor());
    if (has_gradient) outputs[k].backward(cotangents.back(), true);
  }
  const NoGrad no_grad;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!differentiable[i]) continue;
    const Tensor gradient = leaves[i].grad().defined() ? leaves[i].grad() : zeros_like(inputs[i]);
    if (gradient.shape() != inputs[i].shape())
      return fmt::format("input {}: gradient {} of {}", i, describe(gradient), describe(inputs[i]));
    const std::vector<double> analytic = gradient.to_vector<double>(), values = inputs[i].to_vector<double>();
    const auto evaluate = [&](size_t element, double value) {
      std::vector<double> changed = values;
      changed[element] = value;
      Tensors arguments = inputs;
      arguments[i] = from_values(changed, inputs[i].shape(), inputs[i].device());
      return inner_product(call(arguments), cotangents);
    };
    const size_t stride = std::max<size_t>(1, values.size() / options.elements);
    for (size_t element = 0; element < values.size(); element += stride) {
      const double step = options.step * std::max(1.0, std::abs(values[element]));
      const double numeric =
          (evaluate(element, values[element] + step) - evaluate(element, values[element] - step)) / (2 * step);
      const double error = std::abs(numeric - analytic[element]);
      if (!(error <= options.absolute + options.relative * std::max(std::abs(numeric), std::abs(analytic[element]))))
        return fmt::format("input {} {}, element {}: gradient {}, central difference {}", i, describe(inputs[i]),
                           element, analytic[element], numeric);
    }
  }
  return {};
}

Tensors make_inputs(const Sample& sample, DType float_dtype, Device device) {
  Tensors inputs;
  for (size_t i = 0; i < sample.inputs.size(); ++i) {
    const SampleInput& input = sample.inputs[i];
    const int64_t count = input.shape.numel();
    std::vector<double> values(static_cast<size_t>(count));
    RandomStream random(17 + i, hash_name("sample"));
    for (double& value : values) value = input.low + (input.high - input.low) * random.uniform64();
    if (input.kind == SampleInput::Kind::distinct) {
      std::vector<size_t> order(values.size());
      std::iota(order.begin(), order.end(), size_t{0});
      for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random.below(static_cast<uint32_t>(k))]);
      for (size_t k = 0; k < values.size(); ++k)
        values[k] = input.low + (input.high - input.low) * static_cast<double>(order[k]) / static_cast<double>(count);
    }
    DType dtype = float_dtype;
    if (input.kind == SampleInput::Kind::ids) {
      dtype = DType::i32;
      for (double& value : values) value = std::floor(value);
    }
    if (input.kind == SampleInput::Kind::mask) {
      dtype = DType::boolean;
      for (double& value : values) value = value < (input.low + input.high) / 2 ? 0 : 1;
    }
    // Rounding to f32 first gives every float dtype but bf16 the same values.
    inputs.push_back(from_values(values, input.shape).to(DType::f32).to(dtype).to(device));
  }
  return inputs;
}

std::vector<bool> differentiable_inputs(const Sample& sample) {
  std::vector<bool> flags;
  for (const SampleInput& input : sample.inputs)
    flags.push_back(input.differentiable &&
                    (input.kind == SampleInput::Kind::real || input.kind == SampleInput::Kind::distinct));
  return flags;
}

}  // namespace margay::test
