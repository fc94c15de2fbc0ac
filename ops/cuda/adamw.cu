#include "ops/adamw.h"

#include <cmath>

#include "engine/cuda/packs.cuh"
#include "ops/cuda/tensor_table.cuh"

namespace margay::kernels {
namespace {

// The factors of a step are made in f64, as on the CPU; a block works on AdamW::kBlock elements of one tensor.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads)
    step(cuda::TableChunk<AdamWTensor> table, const double* hyper, AdamWOptions options) {
  using A = acc_t<T>;
  if (std::isnan(hyper[3])) return;
  const int64_t block = table.first_block + blockIdx.x;
  const AdamWTensor& tensor = table.entries[table.find(block)];
  const int64_t begin = (block - tensor.first_block) * AdamW<T>::kBlock;
  const int64_t end = tensor.size - begin < AdamW<T>::kBlock ? tensor.size : begin + AdamW<T>::kBlock;
  const double lr = hyper[0] < tensor.rule.max_lr ? hyper[0] : tensor.rule.max_lr;
  const A step(static_cast<A>(lr / hyper[1])), keep(static_cast<A>(1 - lr * tensor.rule.weight_decay));
  const A scale(static_cast<A>(1 / std::sqrt(hyper[2]))), clip(static_cast<A>(hyper[3]));
  const A beta1(static_cast<A>(options.beta1)), rest1(static_cast<A>(1 - options.beta1));
  const A beta2(static_cast<A>(options.beta2)), rest2(static_cast<A>(1 - options.beta2));
  const A eps(static_cast<A>(options.eps));
  T *const param = static_cast<T*>(tensor.param) + begin, *const m = static_cast<T*>(tensor.m) + begin,
           *const v = static_cast<T*>(tensor.v) + begin;
  const T* const grad = static_cast<const T*>(tensor.grad) + begin;
  constexpr int pack = cuda::kPackOf<T>;
  const cuda::Packs<pack> packs(end - begin, cuda::aligned<pack>(param, m, v, grad));
  packs.walk(threadIdx.x, cuda::kThreads, [&]<int N>(int64_t i) {
    auto p = cuda::load<N>(param + i), mean = cuda::load<N>(m + i), square = cuda::load<N>(v + i);
    const auto gradient = cuda::load<N>(grad + i);
    for (int k = 0; k < N; ++k) {
      const A g = A(gradient[k]) * clip;
      const A first = A(mean[k]) * beta1 + g * rest1;
      const A second = A(square[k]) * beta2 + g * g * rest2;
      mean[k] = T(first);
      square[k] = T(second);
      p[k] = T(A(p[k]) * keep - step * first / (std::sqrt(second) * scale + eps));
    }
    cuda::store(m + i, mean);
    cuda::store(v + i, square);
    cuda::store(param + i, p);
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const AdamW<T>& a) {
  cuda::launch_table(cuda, a.tensors, a.count, a.blocks, step<T>, a.hyper, a.options);
}

template void run(Cuda, const AdamW<float>&);
template void run(Cuda, const AdamW<double>&);
template void run(Cuda, const AdamW<bf16>&);

}  // namespace margay::kernels
