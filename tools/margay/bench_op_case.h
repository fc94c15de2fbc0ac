#pragma once
#include <functional>
#include <string>
#include <vector>

#include "engine/tensor.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {

/// One op to time: how to make its inputs, and how to call it.
struct OpCase {
  std::string name;
  int64_t tokens = 0;
  double flops = 0;  ///< of the forward pass
  std::function<Tensors(Device)> inputs;
  std::function<Tensor(const Tensors&)> call;
  bool in_bf16 = false;       ///< is also timed with products in bf16
  double backward = 2;        ///< FLOPs of the backward pass by those of the forward pass
  double bytes = 0;           ///< that the forward pass reads and writes at least
  double backward_bytes = 0;  ///< and the backward pass
};

/// GROUP/NAME/forward and GROUP/NAME/forward+backward, and with `in_bf16` the same for GROUP/NAME-bf16.
void add_rows(const std::string& group, const OpCase& op, std::vector<BenchRow>& rows);

/// The optimiser's pass over `count` parameters.
BenchRow adamw_row(const std::string& name, int64_t count);

/// Standard normal f32 values that want a gradient.
Tensor normal(const Shape& shape, Device device);
/// `count` random numbers below `limit`.
Tensor random_ids(int64_t count, int64_t limit, Device device);

}  // namespace margay::cli
