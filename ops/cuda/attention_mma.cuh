#pragma once
#include <optional>

#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/rounded.cuh"

// Causal attention on tensor cores: factors in bf16, sums in f32. A block of four warps works on a tile of 64 rows, 16
// a warp, against tiles of 64 other rows, for which it waits while it works on what came before. Weights stay in
// registers: what one product leaves in a lane is what the next one wants there.

namespace margay::kernels::attention {

inline constexpr int kBlock = 4 * cuda::kWarp;
inline constexpr int kSize = 64;  // rows of a tile
static_assert(kSize == kTile<float>, "place() counts tiles for both kinds of kernels");

/// Calls body with the smallest size of heads, as a constant, for which there is a kernel.
template <class Body>
void with_head_size(int64_t dh, const Body& body) {
  if (dh <= 32) return body(std::integral_constant<int, 32>{});
  if (dh <= 64) return body(std::integral_constant<int, 64>{});
  body(std::integral_constant<int, 128>{});
}

/// Blocks that a multiprocessor should have registers for, where a lane's sums and scores are this many.
constexpr int blocks_for(int numbers) { return numbers <= 64 ? 4 : numbers <= 96 ? 3 : 2; }

/// A factor [B,H,L,dh] in bf16, with rows that start at multiples of 16 bytes.
struct Bf16Heads {
  const bf16* data;
  HeadStrides strides;
  __device__ Rows<const bf16> rows(const Place& at) const { return head_rows(data, strides, at.batch, at.head); }
};

__device__ inline void write_pair(float* to, float left, float right) { to[0] = left, to[1] = right; }
/// `to` is a multiple of 4.
__device__ inline void write_pair(bf16* to, float left, float right) {
  const uint32_t pair = cuda::bf16_pair(left, right);
  void* const destination = to;
  __builtin_memcpy(__builtin_assume_aligned(destination, 4), &pair, sizeof(pair));
}

/// A factor as Bf16Heads: itself if it is that, else a rounded copy, which lives as long as this.
template <class T>
class Factor {
 public:
  Factor(Cuda context, const T* data, const HeadStrides& strides, int64_t L, const AttentionShape& s) {
    if constexpr (std::is_same_v<T, bf16>) {
      if (serves(data, strides)) {
        heads_ = {data, strides};
        return;
      }
    }
    copy_.emplace(context, cuda::MatrixView<T>{data, strides.row, 1}, L, s.dh, Shape{s.B, s.H},
                  Shape{strides.batch, strides.head});
    const cuda::MatrixView<bf16> first = copy_->view();
    heads_ = {first.data, {s.H * copy_->distance(), copy_->distance(), first.row}};
  }
  operator Bf16Heads() const { return heads_; }  // NOLINT: it is one, and its memory

 private:
  static bool serves(const bf16* data, const HeadStrides& strides) {
    constexpr int64_t step = 16 / sizeof(bf16);
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.batch % step == 0 && strides.head % step == 0 &&
           strides.row % step == 0;
  }
  std::optional<cuda::Rounded> copy_;
  Bf16Heads heads_{};
};

/// Rows of a factor in shared memory. The padding puts eight rows, which load_matrices reads at a time, into different
/// banks.
template <int kDim>
struct Tile {
  bf16 rows[kSize][kDim + 8];
};

/// Starts copying rows first ... of `from` before `end`; the others, and columns from dh on, are 0.
template <int kDim>
__device__ void start_load(Tile<kDim>& tile, Rows<const bf16> from, int64_t first, int64_t end, int64_t dh) {
  constexpr int each = 16 / sizeof(bf16), in_row = kDim / each;
  for (int i = static_cast<int>(threadIdx.x); i < kSize * in_row; i += kBlock) {
    const int row = i / in_row, column = i % in_row * each;
    const bool exists = first + row < end && column < dh;
    const bf16* const source = exists ? from[first + row] + column : from.data;
    cuda::start_copy(&tile.rows[row][column], source, exists);
  }
}

/// Which pairs of two tiles see each other: query i and key j if low <= j - i <= high. A Band in half the registers.
struct Visible {
  int low, high;

  /// Key 0 of its tile is `distance` positions before query 0.
  __device__ Visible(int64_t distance, int64_t reach)
      : low(static_cast<int>(max(distance - reach, -int64_t{kSize}))),
        high(static_cast<int>(min(distance, int64_t{kSize}))) {}
  __device__ bool holds(int i, int j) const { return j - i >= low && j - i <= high; }
  __device__ bool all() const { return low <= 1 - kSize && high >= kSize - 1; }
};

/// Products of a warp's 16 rows with the 64 rows of a tile. Element e of part n belongs to own row row_of(e) of the
/// block's tile and to row column_of(n, e) of the other.
struct Scores {
  float part[kSize / 8][4];

  __device__ static int row_of(int e) {
    return static_cast<int>(threadIdx.x) / cuda::kWarp * 16 + static_cast<int>(threadIdx.x) % cuda::kWarp / 4 +
           e / 2 * 8;
  }
  __device__ static int column_of(int n, int e) { return n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2; }
};

/// own other^T.
template <int kDim>
__device__ Scores product(const Tile<kDim>& own, const Tile<kDim>& other) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp, row = static_cast<int>(threadIdx.x) / cuda::kWarp * 16;
  Scores scores;
  for (int n = 0; n < kSize / 8; ++n)
    for (int e = 0; e < 4; ++e) scores.part[n][e] = 0;
  for (int d = 0; d < kDim; d += 16) {
    uint32_t a[4];
    cuda::load_matrices<false>(a, &own.rows[row + lane % 16][d + lane / 16 * 8]);
    for (int n = 0; n < kSize / 8; n += 2) {
      uint32_t b[4];
      cuda::load_matrices<false>(b, &other.rows[n * 8 + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
      cuda::multiply_add(scores.part[n], a, {b[0], b[1]});
      cuda::multiply_add(scores.part[n + 1], a, {b[2], b[3]});
    }
  }
  return scores;
}

/// What a warp sums up for its 16 rows: element e of part n is in row Scores::row_of(e), column Scores::column_of(n,
/// e).
template <int kDim>
struct Sums {
  float part[kDim / 8][4];

  __device__ Sums() {
    for (int n = 0; n < kDim / 8; ++n)
      for (int e = 0; e < 4; ++e) part[n][e] = 0;
  }

  /// += weights tile, the weights rounded.
  __device__ void add(const Scores& weights, const Tile<kDim>& tile) {
    const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp;
    for (int k = 0; k < kSize / 8; k += 2) {
      const float(&left)[4] = weights.part[k], (&right)[4] = weights.part[k + 1];
      const uint32_t a[4] = {cuda::bf16_pair(left[0], left[1]), cuda::bf16_pair(left[2], left[3]),
                             cuda::bf16_pair(right[0], right[1]), cuda::bf16_pair(right[2], right[3])};
      for (int n = 0; n < kDim / 8; n += 2) {
        uint32_t b[4];
        cuda::load_matrices<true>(b, &tile.rows[k * 8 + lane % 16][n * 8 + lane / 16 * 8]);
        cuda::multiply_add(part[n], a, {b[0], b[1]});
        cuda::multiply_add(part[n + 1], a, {b[2], b[3]});
      }
    }
  }

  /// Adds what hide_non_finite() has taken out of a tile, which holds rows first ... of `from`, to the rows that see
  /// it.
  template <class Sees>
  __device__ void add_non_finite(Rows<const bf16> from, int64_t first, int64_t end, int64_t dh, const Sees& sees) {
    const int rows = static_cast<int>(min(int64_t{kSize}, end - first));
#pragma unroll 1
    for (int j = 0; j < rows; ++j) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        for (int e = 0; e < 4; ++e) {
          const int column = Scores::column_of(n, e);
          if (column >= dh || !sees(Scores::row_of(e), j)) continue;
          const auto value = float(from[first + j][column]);
          if (!std::isfinite(value)) part[n][e] += value;
        }
      }
    }
  }

  /// Writes a row, times factor(r) in the lane's row r of two, to row first + ... of `to`, if that is before `end`.
  template <class T, class Factor>
  __device__ void store(Rows<T> to, int64_t first, int64_t end, int64_t dh, const Factor& factor) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first + Scores::row_of(2 * r);
      if (row >= end) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = Scores::column_of(n, 0);
        if (column < dh) write_pair(to[row] + column, part[n][2 * r] * factor(r), part[n][2 * r + 1] * factor(r));
      }
    }
  }
};

/// Puts 0 where a tile holds NaN or infinity, and says in all threads whether it did. Pairs that do not see each other
/// have weight 0, and 0 times those would not be 0. All threads must take part; they see the tile then.
template <int kDim>
__device__ bool hide_non_finite(Tile<kDim>& tile) {
  bool found = false;
  for (int i = static_cast<int>(threadIdx.x); i < kSize * kDim; i += kBlock) {
    uint16_t& bits = tile.rows[i / kDim][i % kDim].bits;
    if ((bits & 0x7f80u) != 0x7f80u) continue;
    bits = 0;
    found = true;
  }
  return __syncthreads_or(found) != 0;
}

/// Which weights of a lane dropout keeps: bit 4n + e for element e of part n, of which `element(row, column)` says the
/// place in the mask. They are made one after the other: that takes fewer registers.
template <class Element>
__device__ uint32_t kept_weights(const AttentionDropout& dropout, const Element& element) {
  if (dropout.rate <= 0) return 0xffffffffu;
  const DropoutMask mask = DropoutMask::make(dropout.rng, dropout.stream, dropout.rate);
  uint32_t bits = 0;
#pragma unroll 1
  for (int i = 0; i < 32; ++i) {
    const int64_t at = element(Scores::row_of(i % 4), Scores::column_of(i / 4, i % 4));
    bits |= uint32_t{mask.keeps_element(static_cast<uint64_t>(at))} << i;
  }
  return bits;
}

/// A reduction over the four lanes that share rows, in all of them.
template <class Combine>
__device__ float reduce_row(float value) {
  value = Combine::combine(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return Combine::combine(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

template <class T>
void run_on_tensor_cores(Cuda, const CausalAttentionFwd<T>&);
/// dq, dk and dv, and behind the deltas in the workspace what each query adds to dscale.
template <class T>
void run_on_tensor_cores(Cuda, const CausalAttentionBwd<T>&);

/// Runs on tensor cores if they serve: for bf16, for f32 where products may be rounded, and for heads of these sizes.
template <class T, template <class> class Args>
bool try_tensor_cores(Cuda cuda, const Args<T>& a) {
  if constexpr (!std::is_same_v<T, double>) {
    const int64_t dh = a.shape.dh;
    const bool rounds = std::is_same_v<T, bf16> || a.precision == Precision::bf16;
    if (!rounds || dh < 16 || dh > 128 || dh % 16 != 0) return false;
    run_on_tensor_cores(cuda, a);
    return true;
  }
  return false;
}

}  // namespace margay::kernels::attention
