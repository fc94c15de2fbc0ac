#include "ops/where.h"

#include "engine/cuda/nest.cuh"
#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

template <class T>
__global__ void select(cuda::Packs<cuda::kPackOf<T>> packs, cuda::Nest<4> nest, const bool* mask, const T* a,
                       const T* b, T* y) {
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[4];
    nest.offsets(i, at);
    const auto choose = [](bool first, T x, T y) { return first ? x : y; };
    cuda::store(y + at[3],
                cuda::map(choose, cuda::load<N>(mask + at[0], nest.repeats(0)),
                          cuda::load<N>(a + at[1], nest.repeats(1)), cuda::load<N>(b + at[2], nest.repeats(2))));
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const Where<T>& a) {
  const cuda::Nest<4> nest(
      StridedLoop<4>(a.shape, {a.mask_strides, a.a_strides, a.b_strides, contiguous_strides(a.shape)}));
  const cuda::Packs<cuda::kPackOf<T>> packs(nest, a.mask, a.a, a.b, a.y);
  cuda::launch_packs(cuda, packs, select<T>, nest, a.mask, a.a, a.b, a.y);
}

template void run(Cuda, const Where<float>&);
template void run(Cuda, const Where<double>&);
template void run(Cuda, const Where<bf16>&);
template void run(Cuda, const Where<int32_t>&);
template void run(Cuda, const Where<int64_t>&);
template void run(Cuda, const Where<bool>&);

}  // namespace margay::kernels
