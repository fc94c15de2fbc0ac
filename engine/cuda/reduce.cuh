#pragma once

#include "engine/cuda/launch.cuh"

namespace margay::cuda {

/// The sum of `value` over a warp, in lane 0: a fixed tree, so always the same bits. All lanes must take part.
template <class T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

struct Sum {
  template <class T>
  __device__ static T combine(T a, T b) {
    return a + b;
  }
};
/// The larger one; NaN on either side gives NaN.
struct Largest {
  template <class T>
  __device__ static T combine(T a, T b) {
    return b > a || b != b ? b : a;
  }
};

/// `value` combined over `lanes` neighbouring lanes of a warp, a power of two, in each of them: a fixed tree. All of
/// them must take part.
template <class Combine, int lanes = kWarp, class T>
__device__ T warp_reduce(T value) {
  constexpr unsigned low = 0xffffffffu >> (kWarp - lanes);
  const unsigned mask = lanes == kWarp ? low : low << (threadIdx.x % kWarp / lanes * lanes);
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    value = Combine::combine(value, __shfl_xor_sync(mask, value, distance));
  return value;
}

/// `value` combined over a block of kThreads threads (in x), in every thread: a fixed tree. All threads must take part.
template <class Combine, class T>
__device__ T block_reduce(T value) {
  constexpr int warps = kThreads / kWarp;
  __shared__ T partial[warps];
  value = warp_reduce<Combine>(value);
  __syncthreads();  // who reads the results of an earlier call is done
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = partial[0];
  for (int warp = 1; warp < warps; ++warp) value = Combine::combine(value, partial[warp]);
  return value;
}

}  // namespace margay::cuda
