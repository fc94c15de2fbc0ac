#pragma once
#include "engine/cuda/launch.cuh"
#include "ops/cuda/fast_math.cuh"
#include "ops/selective_scan.h"

namespace margay::kernels::scan {

// A block has neighbouring channels of one sequence in one stretch of tokens, and kLanes threads for each: a thread
// carries kOwn neighbouring states in registers, of one group of kGroup after the other. It goes through the stretch
// tile by tile; what the threads of a channel or those of a token share lies in shared memory. Tokens and channels that
// do not exist have step sizes and inputs of 0, which change no state.
inline constexpr int kOwn = ScanShape::kGpuStates, kGroup = ScanShape::kGpuGroup, kLanes = kGroup / kOwn;

/// For the states of a thread, in one access.
template <class A>
struct alignas(16) Own {
  A x[kOwn];
};

/// Of a token and a channel, in one access.
template <class A>
struct alignas(2 * sizeof(A)) Two {
  A first, second;
};

/// The sum of v[i] over the threads of a channel, in the i-th of them: three shuffles for four sums.
template <class A>
__device__ A sum_lanes(const A (&v)[kLanes]) {
  static_assert(kLanes == 4);
  const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
  const A low = (upper ? v[2] : v[0]) + __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 2);
  const A high = (upper ? v[3] : v[1]) + __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 2);
  return (odd ? high : low) + __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
}

/// Where a thread works.
struct Place {
  int64_t batch, stretch, corner, channel;  // corner: first channel of the block
  int64_t begin, end;                       // tokens of the stretch
  int local, lane;                          // channel of the block, thread of the channel
  bool exists;

  __device__ Place(const ScanShape& s, const Stretches& stretches) {
    const int64_t width = blockDim.x / kLanes, blocks = (s.channels + width - 1) / width;
    corner = blockIdx.x % blocks * width;
    stretch = blockIdx.x / blocks % stretches.count;
    batch = blockIdx.x / blocks / stretches.count;
    begin = stretch * stretches.tokens;
    end = min(begin + stretches.tokens, s.length);
    local = threadIdx.x / kLanes;
    lane = threadIdx.x % kLanes;
    channel = corner + local;
    exists = channel < s.channels;
  }
  /// Of this thread's i-th state of a group.
  __device__ int64_t state(int64_t group, int i) const { return group * kGroup + lane * kOwn + i; }
  /// Of the channel in [B, E], and in [stretches, B, E].
  __device__ int64_t row(const ScanShape& s) const { return batch * s.channels + channel; }
  __device__ int64_t stretch_row(const ScanShape& s) const { return stretch * s.batch * s.channels + row(s); }
};

/// Reads the states of a thread from row `row` of [.., N], times `scale`; zeros where there is none.
template <class T, class A>
__device__ void load_states(const ScanShape& s, const Place& p, int64_t group, const T* from, int64_t row, A scale,
                            A (&to)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t n = p.state(group, i);
    to[i] = from && p.exists && n < s.states ? scale * A(from[row * s.states + n]) : A(0);
  }
}
template <class T, class A>
__device__ void store_states(const ScanShape& s, const Place& p, int64_t group, const A (&from)[kOwn], T* to,
                             int64_t row) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t n = p.state(group, i);
    if (p.exists && n < s.states) to[row * s.states + n] = T(from[i]);
  }
}

/// What a block needs of some tokens and a group of states; `steps` begin with the step size.
template <class A, int kTokens, int kChannels>
struct Tile {
  Two<A> steps[kTokens][kChannels];
  Own<A> B[kTokens][kLanes], C[kTokens][kLanes];
};

/// Brings tiles to shared memory, by way of registers, so that the block can work on one while the next is on its way.
/// Neighbouring threads read neighbouring channels, or states. Rows that are null are zeros.
template <class T, int kTokens, int kChannels>
class Loader {
  using A = acc_t<T>;
  static constexpr int kThreads = kChannels * kLanes;
  static constexpr int kRows = kTokens / kLanes, kValues = kTokens * kGroup / kThreads,
                       kValueTokens = kTokens / kValues;
  static_assert(kRows * kLanes == kTokens && kValues * kThreads == kTokens * kGroup);

 public:
  __device__ Loader(const ScanInputs<T>& in, const TokenRows<const T>& dy, const Place& p) : in_(in), dy_(dy), p_(p) {
    const int64_t channel = p.corner + threadIdx.x % kChannels;
    exists_ = channel < in.shape.channels;
    bias_ = exists_ && in.delta_bias ? A(in.delta_bias[channel]) : A(0);
  }

  __device__ void fetch(int64_t token, int tokens, int64_t group) {
    const int row = threadIdx.x / kChannels, value_row = threadIdx.x / kGroup;
    const int64_t channel = p_.corner + threadIdx.x % kChannels, n = group * kGroup + threadIdx.x % kGroup;
    rows_ = exists_ ? tokens - row : 0;
    read<kLanes>(in_.u, token + row, channel, rows_, u_);
    read<kLanes>(in_.delta, token + row, channel, rows_, delta_);
    read<kLanes>(in_.z, token + row, channel, rows_, z_);
    read<kLanes>(dy_, token + row, channel, rows_, dy_rows_);
    const int values = n < in_.shape.states ? tokens - value_row : 0;
    read<kValueTokens>(in_.B, token + value_row, n, values, B_);
    read<kValueTokens>(in_.C, token + value_row, n, values, C_);
  }
  /// put(t, c, step, u, z, dy) stores what is of a channel.
  template <class Put>
  __device__ void store(Tile<A, kTokens, kChannels>& tile, const Put& put) const {
    const int row = threadIdx.x / kChannels, c = threadIdx.x % kChannels;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      A step = A(delta_[r]) + bias_;
      if (in_.delta_softplus) step = fast::softplus(step);
      put(row + r * kLanes, c, r * kLanes < rows_ ? step : A(0), A(u_[r]), A(z_[r]), A(dy_rows_[r]));
    }
    const int n = threadIdx.x % kGroup;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const int t = threadIdx.x / kGroup + v * kValueTokens;
      tile.B[t][n / kOwn].x[n % kOwn] = A(B_[v]);
      tile.C[t][n / kOwn].x[n % kOwn] = A(C_[v]);
    }
  }

 private:
  /// to[r] = element i of row token + r distance, where that is below `rows`; else 0.
  template <int distance, int count>
  __device__ void read(const TokenRows<const T>& from, int64_t token, int64_t i, int rows, T (&to)[count]) const {
    if (!from.data) return;
    const T* next = from.data + p_.batch * from.batch_stride + token * from.row_stride + i;
    const int64_t step = distance * from.row_stride;
    if (rows > (count - 1) * distance) {
#pragma unroll
      for (int r = 0; r < count; ++r, next += step) to[r] = *next;
    } else {
#pragma unroll
      for (int r = 0; r < count; ++r, next += step) to[r] = r * distance < rows ? *next : T(0);
    }
  }

  const ScanInputs<T>& in_;
  TokenRows<const T> dy_;
  const Place& p_;
  bool exists_;
  A bias_;
  int rows_ = 0;
  T u_[kRows] = {}, delta_[kRows] = {}, z_[kRows] = {}, dy_rows_[kRows] = {}, B_[kValues] = {}, C_[kValues] = {};
};

/// The tiles of a stretch in one direction of time, each once for every group of states.
template <int kTokens>
struct Walk {
  int64_t begin, end, groups, tiles;
  bool backwards;

  __device__ Walk(const ScanShape& s, const Place& p, bool backwards)
      : begin(p.begin),
        end(p.end),
        groups(max(int64_t{1}, (s.states + kGroup - 1) / kGroup)),
        tiles(max(int64_t{1}, (p.end - p.begin + kTokens - 1) / kTokens)),
        backwards(backwards) {}
  __device__ int64_t steps() const { return tiles * groups; }
  __device__ int64_t group(int64_t step) const { return step % groups; }
  __device__ int64_t token(int64_t step) const {
    return begin + (backwards ? tiles - 1 - step / groups : step / groups) * kTokens;
  }
  __device__ int tokens(int64_t step) const { return static_cast<int>(min(int64_t{kTokens}, end - token(step))); }
  __device__ bool in_first_tile(int64_t step) const { return step < groups; }
  __device__ bool in_last_tile(int64_t step) const { return step + groups >= steps(); }
};

template <class T>
__device__ TokenRows<const T> dense_rows(const T* data, const ScanShape& s) {
  return {data, s.length * s.channels, s.channels};
}

inline unsigned grid_of(const ScanShape& s, const Stretches& stretches, int64_t width) {
  return static_cast<unsigned>(s.batch * stretches.count * ((s.channels + width - 1) / width));
}

}  // namespace margay::kernels::scan
