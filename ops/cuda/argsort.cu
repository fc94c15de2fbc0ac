#include "ops/argsort.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

/// Whether a comes before b in ascending order: a NaN is larger than every number and equal to a NaN.
template <class A>
__device__ bool less(A a, A b) {
  return a < b || (b != b && a == a);
}

// The place of an element is the number of elements before it, in order and, of equals, in the row: a thread per
// element counts them, over tiles of the row in shared memory. N^2 comparisons for a row, which no order of the input
// makes more.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) rank(ArgSort<T> a, int64_t blocks_per_row) {
  using A = acc_t<T>;
  __shared__ A tile[cuda::kThreads];
  for (int64_t block = blockIdx.x; block < a.rows * blocks_per_row; block += gridDim.x) {
    const int64_t row = block / blocks_per_row, i = block % blocks_per_row * cuda::kThreads + threadIdx.x;
    const T* const x = a.x + row * a.N;
    const A own = i < a.N ? A(x[i]) : A(0);
    int64_t place = 0;
    for (int64_t begin = 0; begin < a.N; begin += cuda::kThreads) {
      const int64_t count = min(int64_t{cuda::kThreads}, a.N - begin);
      __syncthreads();  // who reads the tile is done
      if (threadIdx.x < count) tile[threadIdx.x] = A(x[begin + threadIdx.x]);
      __syncthreads();
      for (int64_t j = 0; j < count; ++j) {
        const bool before = a.descending ? less(own, tile[j]) : less(tile[j], own);
        const bool after = a.descending ? less(tile[j], own) : less(own, tile[j]);
        place += before || (!after && begin + j < i) ? 1 : 0;
      }
    }
    if (i < a.N) a.y[row * a.N + place] = static_cast<int32_t>(i);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const ArgSort<T>& a) {
  const int64_t blocks_per_row = (a.N + cuda::kThreads - 1) / cuda::kThreads;
  const int64_t blocks = std::min(a.rows * blocks_per_row, int64_t{1} << 20);
  if (blocks > 0)
    cuda::launch(cuda, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads), rank<T>, a, blocks_per_row);
}

template void run(Cuda, const ArgSort<float>&);
template void run(Cuda, const ArgSort<double>&);
template void run(Cuda, const ArgSort<bf16>&);

}  // namespace margay::kernels
