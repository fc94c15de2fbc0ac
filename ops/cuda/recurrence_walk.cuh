#pragma once
#include "engine/cuda/launch.cuh"
#include "ops/recurrence_chunks.h"

// What the passes of ops/cuda/recurrence.cuh have in common: which numbers of a state a thread keeps, sums over those
// who share a column, and the walk over tokens in tiles that are copied to shared memory.

namespace margay::kernels::recurrence {

inline constexpr int kLanes = 16;     // threads that share columns
inline constexpr int kThreads = 128;  // of a block
inline constexpr int kGroups = kThreads / kLanes;
inline constexpr int kStep = 2;           // numbers of a lane that are there or not together
inline constexpr int kTileTokens = 16;    // at most
inline constexpr int kTileBytes = 32768;  // at most, unless one token takes more
inline constexpr int kMostSize = 4096;    // rows or columns of a state

/// Columns of a thread with R numbers of each.
template <int R>
inline constexpr int kColumns = R > 16 ? 1 : int{RecurrenceChunks::kBlockColumns} / kGroups;

/// Blocks that a multiprocessor should hold, which bounds their registers.
template <class A, int R>
inline constexpr int kResident = R > 16 ? 1 : (R > 4 ? 12 : 20) / int{sizeof(A)};

/// Where a thread works. It owns the columns (or rows) own ... own + C - 1 of a state together with the other lanes of
/// its group, and of each the numbers lane, lane + kLanes, ...
template <int C>
struct Place {
  static constexpr int kWidth = kGroups * C;   // columns of a block
  static constexpr int kSharers = kLanes / C;  // lanes that get the sum of the same column
  int64_t head, chunk, begin, own;             // begin: the first column of the block
  int local, lane;                             // own - begin, and the place in the group
  __device__ Place(int64_t size, int64_t chunks) {
    const int64_t blocks = (size + kWidth - 1) / kWidth, rest = blockIdx.x / blocks;
    head = rest / chunks;
    chunk = rest % chunks;
    begin = blockIdx.x % blocks * kWidth;
    local = static_cast<int>(threadIdx.x) / kLanes * C;
    own = begin + local;
    lane = static_cast<int>(threadIdx.x) % kLanes;
  }
  /// Whether no lane of the warp has a column.
  __device__ bool idle(int64_t size) const {
    return begin + threadIdx.x / cuda::kWarp * (cuda::kWarp / kLanes * C) >= size;
  }
  /// The column whose sums this lane gets, counted from `local` and `own`; one of its lanes writes them.
  __device__ int column() const { return lane / kSharers; }
  __device__ bool writes(int64_t size) const { return lane % kSharers == 0 && own + column() < size; }
};

/// Sums over the lanes of a group, a fixed tree: of x[c] in the lanes whose column() is c. Half of the columns change
/// hands at first, so that later steps have fewer. All lanes of the warp must take part.
template <int C, class A>
__device__ A sum_lanes(A (&x)[C]) {
  int distance = kLanes / 2;
#pragma unroll
  for (int half = C / 2; half > 0; half /= 2, distance /= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(distance)) != 0;
#pragma unroll
    for (int c = 0; c < half; ++c) {
      const A got = __shfl_xor_sync(0xffffffffu, upper ? x[c] : x[c + half], distance);
      x[c] = (upper ? x[c + half] : x[c]) + got;
    }
  }
#pragma unroll
  for (; distance > 0; distance /= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance);
  return x[0];
}

/// The reverse: `value` of the lanes whose column() is c, in x[c] of all lanes of the group.
template <int C, class A>
__device__ void share(A value, A (&x)[C]) {
  const int group = static_cast<int>(threadIdx.x) % cuda::kWarp / kLanes * kLanes;
#pragma unroll
  for (int c = 0; c < C; ++c) x[c] = __shfl_sync(0xffffffffu, value, group + c * (kLanes / C));
}

/// Calls body(r) for the numbers r of a lane, of `size` in a group; up to kStep - 1 more.
template <int R, class Body>
__device__ void for_numbers(int size, const Body& body) {
#pragma unroll(R > 16 ? 1 : R)
  for (int first = 0; first < R; first += kStep) {
    if (first * kLanes >= size) break;
#pragma unroll
    for (int r = first; r < first + kStep; ++r) body(r);
  }
}

/// Calls body(r, c) for the numbers r of all columns of a thread.
template <int R, int C, class Body>
__device__ void for_all(int size, const Body& body) {
  for_numbers<R>(size, [&](int r) {
#pragma unroll
    for (int c = 0; c < C; ++c) body(r, c);
  });
}

/// How the tokens of a tile lie in shared memory: one after the other, `row` numbers each, of which vectors along the
/// lanes take `wide`, padded by zeros to what for_numbers() walks over.
struct Tiling {
  int wide, row, tokens;
};

inline int padded(int64_t size) {
  constexpr int step = kLanes * kStep;
  return static_cast<int>((size + step - 1) / step * step);
}

/// With `row` numbers of type A for a token.
template <class A>
Tiling tiling_of(int wide, int row) {
  return {wide, row, std::clamp(kTileBytes / (row * static_cast<int>(sizeof(A))), 1, kTileTokens)};
}

/// The tile of a block; as much of it as the kernel was started with.
template <class A>
struct Tile {
  A numbers[3 * kMostSize + 3 * kThreads];
};

/// to[t * row + i] = value(t, i) for the tokens t of a tile and i < size, and 0 for the other i < width. Neighbouring
/// threads have neighbouring i; what a thread reads is on its way at the same time.
template <class A, class Value>
__device__ void stage(A* to, int row, int tokens, int width, int64_t size, const Value& value) {
  constexpr int warps = kThreads / cuda::kWarp, count = kTileTokens / warps;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarp;
  for (int i = static_cast<int>(threadIdx.x) % cuda::kWarp; i < width; i += cuda::kWarp) {
    A values[count];
#pragma unroll
    for (int n = 0; n < count; ++n) {
      const int t = warp + n * warps;
      values[n] = t < tokens && i < size ? value(t, i) : A(0);
    }
#pragma unroll
    for (int n = 0; n < count; ++n) {
      const int t = warp + n * warps;
      if (t < tokens) to[t * row + i] = values[n];
    }
  }
}

/// Walks over the tokens [begin, end), tile after tile: load(first token, tokens) by all threads of the block, then
/// step(t, place of the token in the tile) by warps that are not idle.
template <bool backwards, class Load, class Step>
__device__ void walk(int64_t begin, int64_t end, int most, bool idle, const Load& load, const Step& step) {
  const int64_t tiles = (end - begin + most - 1) / most;
  for (int64_t n = 0; n < tiles; ++n) {
    const int64_t first = begin + (backwards ? tiles - 1 - n : n) * most;
    const int tokens = static_cast<int>(end - first < most ? end - first : most);
    __syncthreads();  // the tile before has been read
    load(first, tokens);
    __syncthreads();
    if (idle) continue;
    for (int s = 0; s < tokens; ++s) {
      const int t = backwards ? tokens - 1 - s : s;
      step(first + t, t);
    }
  }
}

/// Of state number (i,j) between a chunk of a head and the next.
template <class Problem>
__device__ int64_t border_at(const Problem& p, int64_t head, int64_t chunk, int64_t i, int64_t j) {
  return ((head * (p.chunks.count - 1) + chunk) * p.f + i) * p.dv + j;
}

template <class A, class Problem>
__device__ A state_before(const Problem& p, int64_t head, int64_t chunk, int64_t i, int64_t j) {
  if (i >= p.f || j >= p.dv) return A(0);
  return chunk == 0 ? p.initial(head, i, j) : p.states[border_at(p, head, chunk - 1, i, j)];
}

template <class A, class Problem>
__device__ A gradient_after(const Problem& p, int64_t head, int64_t chunk, int64_t i, int64_t j) {
  if (i >= p.f || j >= p.dv) return A(0);
  return chunk == p.chunks.count - 1 ? p.dfinal(head, i, j) : p.gradients[border_at(p, head, chunk, i, j)];
}

template <class Problem>
__device__ int64_t end_of(const Problem& p, int64_t chunk) {
  return min((chunk + 1) * p.chunks.tokens, p.tokens);
}

}  // namespace margay::kernels::recurrence
