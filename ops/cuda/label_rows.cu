#include "ops/label_rows.h"

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// The sum of `value` over the threads of the block before this one; `total` becomes that over all.
__device__ int64_t sum_before(int64_t value, int64_t& total) {
  constexpr int warps = cuda::kThreads / cuda::kWarp;
  __shared__ int64_t sums[warps];
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp, warp = static_cast<int>(threadIdx.x) / cuda::kWarp;
  int64_t sum = value;  // up to and with this thread's
  for (int distance = 1; distance < cuda::kWarp; distance *= 2) {
    const int64_t before = __shfl_sync(0xffffffffu, sum, lane < distance ? lane : lane - distance);
    if (lane >= distance) sum += before;
  }
  __syncthreads();  // who reads the sums of an earlier call is done
  if (lane == cuda::kWarp - 1) sums[warp] = sum;
  __syncthreads();
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) sum += total;
    total += sums[w];
  }
  return sum - value;
}

// One block: the list has an order, and the host waits for its length, so there is nothing to run beside it. It goes
// through the targets in tiles, in which every thread has a few neighbours.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) find_labels(FindLabels<T> a) {
  constexpr int each = 8;
  int64_t count = 0, first_bad = a.R;
  for (int64_t tile = 0; tile < a.R; tile += each * cuda::kThreads) {
    const int64_t begin = tile + each * static_cast<int64_t>(threadIdx.x);
    bool labelled[each];
    int64_t own = 0;
    for (int k = 0; k < each; ++k) {
      const T target = begin + k < a.R ? a.targets[begin + k] : kIgnoredTarget;
      labelled[k] = target != kIgnoredTarget;
      own += labelled[k];
      if (labelled[k] && (target < 0 || target >= a.classes) && begin + k < first_bad) first_bad = begin + k;
    }
    int64_t total = 0, place = count + sum_before(own, total);
    for (int k = 0; k < each; ++k)
      if (labelled[k]) a.rows[place++] = static_cast<T>(begin + k);
    count += total;
  }
  first_bad = cuda::block_reduce<cuda::Smallest>(first_bad);
  if (threadIdx.x > 0) return;
  a.result[0] = count;
  a.result[1] = first_bad < a.R ? first_bad : -1;
}

}  // namespace

template <class T>
void run(Cuda cuda, const FindLabels<T>& a) {
  cuda::launch(cuda, dim3(1), dim3(cuda::kThreads), find_labels<T>, a);
}

template void run(Cuda, const FindLabels<int32_t>&);

}  // namespace margay::kernels
