#pragma once
#include "engine/cuda/launch.cuh"
#include "ops/causal_attention.h"
#include "ops/dropout.h"

// What the passes of causal attention share: a block of kThreads threads, 16 x 16 of them, on a tile of queries against
// a tile of keys. Thread (x, y) holds the scores of rows y + 16 r and columns x + 16 c.

namespace margay::kernels::attention {

inline constexpr int kSide = 16;
inline constexpr int kDepth = 16;     // elements of a head that are in shared memory at a time
inline constexpr int kColumns = 128;  // elements of a head that a block computes
inline constexpr int kColumnsPerThread = kColumns / kSide;
template <class A>
inline constexpr int kTile = 256 / sizeof(A);  // queries, and keys
template <class A>
inline constexpr int kRows = kTile<A> / kSide;  // of a thread

template <class T>
struct Rows {
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T>
__device__ Rows<T> head_rows(T* data, const HeadStrides& strides, int64_t batch, int64_t head) {
  return {data + batch * strides.batch + head * strides.head, strides.row};
}

/// The shared memory of a block.
template <class A>
struct Shared {
  A weights[kTile<A>][kTile<A> + 1];  // [query][key]
  union {
    A factors[2][kDepth][kTile<A> + 1];  // of a product of rows, transposed
    A rows[kDepth][kColumns];            // that weights are applied to
  };
};

/// Where a block works: batch and head, and the first query or key of its tile. blockIdx.y is its part of the head.
struct Place {
  int64_t row, batch, head, first, column;
};
template <class A>
__device__ Place place(const AttentionShape& s, int64_t length, bool last_first) {
  const int64_t tiles = (length + kTile<A> - 1) / kTile<A>, row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t first = (last_first ? tiles - 1 - tile : tile) * kTile<A>;
  return {row, row / s.H, row % s.H, first, int64_t{blockIdx.y} * kColumns};
}

/// out = a b^T for kTile rows from `a_first` and `b_first` on; rows from a_end and b_end on count as 0. All threads
/// must take part.
template <class A, class T>
__device__ void product(Shared<A>& shared, Rows<const T> a, int64_t a_first, int64_t a_end, Rows<const T> b,
                        int64_t b_first, int64_t b_end, int64_t dh, A (&out)[kRows<A>][kRows<A>]) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r)
#pragma unroll
    for (int c = 0; c < kRows<A>; ++c) out[r][c] = 0;
  for (int64_t d = 0; d < dh; d += kDepth) {
    __syncthreads();  // who reads the memory is done
#pragma unroll
    for (int r = 0; r < kRows<A>; ++r) {
      const int row = y + kSide * r;
      const bool inside = d + x < dh;
      shared.factors[0][x][row] = inside && a_first + row < a_end ? A(a[a_first + row][d + x]) : A(0);
      shared.factors[1][x][row] = inside && b_first + row < b_end ? A(b[b_first + row][d + x]) : A(0);
    }
    __syncthreads();
    for (int depth = 0; depth < kDepth; ++depth) {
      A left[kRows<A>], right[kRows<A>];
#pragma unroll
      for (int r = 0; r < kRows<A>; ++r) left[r] = shared.factors[0][depth][y + kSide * r];
#pragma unroll
      for (int c = 0; c < kRows<A>; ++c) right[c] = shared.factors[1][depth][x + kSide * c];
#pragma unroll
      for (int r = 0; r < kRows<A>; ++r)
#pragma unroll
        for (int c = 0; c < kRows<A>; ++c) out[r][c] += left[r] * right[c];
    }
  }
}

/// What part of a tile a query sees: key j of the tile, if low <= j - i <= high for query i of it.
struct Band {
  int64_t low, high;
  __device__ bool holds(int64_t i, int64_t j) const { return j - i >= low && j - i <= high; }
  __device__ bool whole(int64_t size) const { return low <= 1 - size && high >= size - 1; }
};

/// sum += weights[own row, :] from[first + :], columns column + x + 16 c; with `by_key`, own rows are keys, and the sum
/// goes over queries. Pairs that do not see each other add nothing, whatever `from` holds. All threads must take part.
template <bool by_key, class A, class T>
__device__ void gather(Shared<A>& shared, const Band& band, Rows<const T> from, int64_t first, int64_t end,
                       int64_t column, int64_t dh, A (&sum)[kRows<A>][kColumnsPerThread]) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const bool whole = band.whole(kTile<A>);
  for (int begin = 0; begin < kTile<A>; begin += kDepth) {
    __syncthreads();  // the weights are written, and who reads the rows is done
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const int64_t at = column + x + kSide * c;
      shared.rows[y][x + kSide * c] = first + begin + y < end && at < dh ? A(from[first + begin + y][at]) : A(0);
    }
    __syncthreads();
    for (int depth = 0; depth < kDepth; ++depth) {
      A row[kColumnsPerThread];
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) row[c] = shared.rows[depth][x + kSide * c];
#pragma unroll
      for (int r = 0; r < kRows<A>; ++r) {
        const int own = y + kSide * r, other = begin + depth;
        if (!whole && !(by_key ? band.holds(other, own) : band.holds(own, other))) continue;
        const A weight = by_key ? shared.weights[other][own] : shared.weights[own][other];
#pragma unroll
        for (int c = 0; c < kColumnsPerThread; ++c) sum[r][c] += weight * row[c];
      }
    }
  }
}

/// Writes the block's sums, times factor(r), to rows first + ... before `end`.
template <class A, class T, class Factor>
__device__ void store(Rows<T> to, int64_t first, int64_t end, int64_t column, int64_t dh,
                      const A (&sum)[kRows<A>][kColumnsPerThread], const Factor& factor) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r) {
    const int64_t row = first + y + kSide * r;
    if (row >= end) continue;
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c)
      if (column + x + kSide * c < dh) to[row][column + x + kSide * c] = T(sum[r][c] * factor(r));
  }
}

/// What dropout leaves of attention weights.
struct Thinning {
  DropoutMask mask;
  double rate;

  __device__ explicit Thinning(const AttentionDropout& d)
      : mask(d.rate > 0 ? DropoutMask::make(d.rng, d.stream, d.rate) : DropoutMask{}), rate(d.rate) {}
  template <class A>
  __device__ A factor(const AttentionShape& s, int64_t row, int64_t query, int64_t key) const {
    if (rate <= 0) return A(1);
    const int64_t element = (row * s.Lq + query) * s.Lk + key;
    return mask.keeps_element(static_cast<uint64_t>(element)) ? A(1 / (1 - rate)) : A(0);
  }
};

/// The larger number; a NaN is none.
struct Maximum {
  template <class A>
  __device__ static A combine(A a, A b) {
    return b > a ? b : a;
  }
};

/// A reduction over the 16 threads that share rows, in all of them.
template <class Combine, class A>
__device__ A reduce_side(A value) {
  for (int distance = kSide / 2; distance > 0; distance /= 2)
    value = Combine::combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

}  // namespace margay::kernels::attention
