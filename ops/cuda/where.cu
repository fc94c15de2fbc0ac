#include "ops/where.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"

namespace margay::kernels {
namespace {

template <class T>
__global__ void select(cuda::Nest<4> nest, const bool* mask, const T* a, const T* b, T* y) {
  for (int64_t i = cuda::first_index(); i < nest.count; i += cuda::index_step()) {
    int64_t at[4];
    nest.offsets(i, at);
    y[at[3]] = mask[at[0]] ? a[at[1]] : b[at[2]];
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const Where<T>& a) {
  const cuda::Nest<4> nest(
      StridedLoop<4>(a.shape, {a.mask_strides, a.a_strides, a.b_strides, contiguous_strides(a.shape)}));
  cuda::launch_elements(cuda, nest.count, select<T>, nest, a.mask, a.a, a.b, a.y);
}

template void run(Cuda, const Where<float>&);
template void run(Cuda, const Where<double>&);
template void run(Cuda, const Where<bf16>&);
template void run(Cuda, const Where<int32_t>&);
template void run(Cuda, const Where<int64_t>&);
template void run(Cuda, const Where<bool>&);

}  // namespace margay::kernels
