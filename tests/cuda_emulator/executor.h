#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs now, the only one: see run().
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_emulator {

/// Runs `thread` once for every thread of the grid, one grid at a time whoever launches it. Throws std::logic_error
/// where the threads of a block cannot go on, since some wait at one barrier and some at another; and what a thread
/// throws.
void run(dim3 grid, dim3 block, const std::function<void()>& thread);

/// Waits for all threads of the block, or of the warp, that have not ended.
void block_barrier();
void warp_barrier();

/// 32 bytes for the lane of this thread's warp, to pass values through.
void* lane_slot(unsigned lane);
/// The place of this thread in its warp.
unsigned lane();
/// Whether this lane of the warp exists and has not ended.
bool lane_is_live(unsigned lane);

template <class T>
T from_lane(T value, unsigned source) {
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
  std::memcpy(lane_slot(lane()), &value, sizeof(T));
  warp_barrier();
  T result = value;
  if (source < 32 && lane_is_live(source)) std::memcpy(&result, lane_slot(source), sizeof(T));
  warp_barrier();
  return result;
}

}  // namespace cuda_emulator
