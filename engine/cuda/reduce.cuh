#pragma once

#include "engine/cuda/launch.cuh"

namespace margay::cuda {

/// The sum of `value` over a warp, in lane 0: a fixed tree, so always the same bits. All lanes must take part.
template <class T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace margay::cuda
