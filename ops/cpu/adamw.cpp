#include "ops/adamw.h"
#include "engine/parallel.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/simd.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const AdamW<T>& a) {
  using Vec = simd::Vec<T>;
  if (std::isnan(a.hyper[3])) return;
  const double correction1 = a.hyper[1], correction2 = a.hyper[2];
  const Vec clip(static_cast<T>(a.hyper[3])), eps(static_cast<T>(a.options.eps));
  const Vec beta1(static_cast<T>(a.options.beta1)), rest1(static_cast<T>(1 - a.options.beta1));
  const Vec beta2(static_cast<T>(a.options.beta2)), rest2(static_cast<T>(1 - a.options.beta2));
  const Vec scale(static_cast<T>(1 / std::sqrt(correction2)));
  parallel_for(cpu, a.blocks, [&](int64_t block) {
    const AdamWTensor* const last =
        std::upper_bound(a.tensors, a.tensors + a.count, block,
                         [](int64_t index, const AdamWTensor& tensor) { return index < tensor.first_block; });
    const AdamWTensor& tensor = last[-1];  // the last that starts at or before this block, so it is not empty
    const int64_t begin = (block - tensor.first_block) * a.kBlock, end = std::min(tensor.size, begin + a.kBlock);
    T *const param = static_cast<T*>(tensor.param), *const m = static_cast<T*>(tensor.m),
             *const v = static_cast<T*>(tensor.v);
    const T* const grad = static_cast<const T*>(tensor.grad);
    const double lr = std::min(a.hyper[0], tensor.rule.max_lr);
    const Vec step(static_cast<T>(lr / correction1)), keep(static_cast<T>(1 - lr * tensor.rule.weight_decay));
    for (int64_t i = begin; i < end; i += Vec::size) {
      const int64_t n = end - i;
      const Vec g = Vec::load(grad + i, n) * clip;
      const Vec first = Vec::load(m + i, n) * beta1 + g * rest1;
      const Vec second = Vec::load(v + i, n) * beta2 + g * g * rest2;
      first.store(m + i, n);
      second.store(v + i, n);
      (Vec::load(param + i, n) * keep - step * first / (simd::sqrt(second) * scale + eps)).store(param + i, n);
    }
  });
}

template void run(Cpu, const AdamW<float>&);
template void run(Cpu, const AdamW<double>&);

}  // namespace margay::kernels
