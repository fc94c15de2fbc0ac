#pragma once
#include <cstdint>
#include <limits>
#include <span>

#include "engine/op.h"

namespace margay {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};

/// What holds for one tensor alone.
struct AdamWRule {
  double weight_decay = 0;
  double max_lr = std::numeric_limits<double>::infinity();
};

/// One step of AdamW over many tensors, in one pass over their memory:
///   g = clip * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
///   p = p (1 - a * weight_decay) - a * (m / correction1) / (sqrt(v / correction2) + eps),  a = min(lr, max_lr).
/// params, m and v are changed in place: contiguous, of one float dtype, m[i] and v[i] of the shape of params[i]. A
/// tensor without a gradient (undefined) is left as it is. rules[i] holds for params[i]. What changes
/// from step to step lies on the device: hyper f64 [4] = {lr, correction1 = 1 - beta1^t, correction2 = 1 - beta2^t,
/// clip}; no step is taken, and nothing changed, where clip is NaN. Call it while recording is off. Throws OpError
/// where sizes or dtypes do not fit. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
void adamw_step(std::span<const Tensor> params, std::span<const Tensor> grads, std::span<const Tensor> m,
                std::span<const Tensor> v, std::span<const AdamWRule> rules, const Tensor& hyper,
                const AdamWOptions& options = {});

namespace kernels {

/// One tensor of a step, and the number of blocks of the tensors before it.
struct AdamWTensor {
  void *param, *m, *v;
  const void* grad;
  int64_t size, first_block;
  AdamWRule rule;
};
template <class T>
struct AdamW {
  const AdamWTensor* tensors;
  int64_t count, blocks;
  const double* hyper;
  AdamWOptions options;
  static constexpr int64_t kBlock = 4096;  // elements; a block lies in one tensor
};
template <class T>
void run(Cpu, const AdamW<T>&);
template <class T>
void run(Cuda, const AdamW<T>&);

}  // namespace kernels
}  // namespace margay
