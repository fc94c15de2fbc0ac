#include "ops/grad_norm.h"

#include <limits>

#include "engine/cuda/packs.cuh"
#include "ops/cuda/rows.cuh"
#include "ops/cuda/tensor_table.cuh"

namespace margay::kernels {
namespace {

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) sum_squares(cuda::TableChunk<NormTensor> table, double* sums) {
  const int64_t block = table.first_block + blockIdx.x;
  const NormTensor& tensor = table.entries[table.find(block)];
  const int64_t begin = (block - tensor.first_block) * GlobalNorm<T>::kBlock, left = tensor.size - begin;
  const T* const x = static_cast<const T*>(tensor.data) + begin;
  constexpr int pack = cuda::kPackOf<T>;
  const cuda::Packs<pack> packs(left < GlobalNorm<T>::kBlock ? left : GlobalNorm<T>::kBlock, cuda::aligned<pack>(x));
  double sum = 0;
  packs.walk(threadIdx.x, cuda::kThreads, [&]<int N>(int64_t i) {
    const auto values = cuda::load<N>(x + i);
    for (int k = 0; k < N; ++k) {
      const auto value = static_cast<double>(acc_t<T>(values[k]));
      sum += value * value;
    }
  });
  sum = cuda::block_reduce<cuda::Sum>(sum);
  if (threadIdx.x == 0) sums[block] = sum;
}

// One block.
__global__ void __launch_bounds__(cuda::kThreads) add_squares(const double* sums, int64_t count, double* norm) {
  const double sum = cuda::team_sum<cuda::BlockTeam>(count, [=](int64_t i) { return sums[i]; });
  if (threadIdx.x == 0) *norm = std::sqrt(sum);
}

template <class T>
__global__ void clip(ClipCoefficient<T> a) {
  const T ratio = static_cast<T>(a.max_norm) / (*a.norm + T(1e-6));
  const bool finite = std::isfinite(*a.norm) && (!a.loss || std::isfinite(*a.loss));
  *a.coefficient = !finite ? std::numeric_limits<T>::quiet_NaN() : a.max_norm == 0 || ratio > 1 ? T(1) : ratio;
}

}  // namespace

template <class T>
void run(Cuda cuda, const GlobalNorm<T>& a) {
  cuda::launch_table(cuda, a.tensors, a.count, a.blocks, sum_squares<T>, a.workspace);
  cuda::launch(cuda, dim3(1), dim3(cuda::kThreads), add_squares, a.workspace, a.blocks, a.norm);
}

template <class T>
void run(Cuda cuda, const ClipCoefficient<T>& a) {
  cuda::launch(cuda, dim3(1), dim3(1), clip<T>, a);
}

template void run(Cuda, const GlobalNorm<float>&);
template void run(Cuda, const GlobalNorm<double>&);
template void run(Cuda, const GlobalNorm<bf16>&);
template void run(Cuda, const ClipCoefficient<double>&);

}  // namespace margay::kernels
