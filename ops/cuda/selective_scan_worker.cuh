#pragma once
#include "engine/cuda/launch.cuh"
#include "ops/selective_scan.h"
#include "ops/unary_functors.h"

namespace margay::kernels::scan {

// A block has kChannels neighbouring channels of one sequence, and kStates threads for each: a thread carries every
// kStates-th state, one group of states after the other through a chunk. Sums over states are shuffles among the
// threads of a channel.
inline constexpr int kChannels = ScanShape::kBlock, kStates = 16, kChunk = ScanShape::kChunk;
static_assert(kChannels * kStates == cuda::kThreads);

template <class T>
__device__ const T* row_of(const TokenRows<const T>& rows, int64_t batch, int64_t token) {
  return rows.data + batch * rows.batch_stride + token * rows.row_stride;
}

template <class A>
__device__ A sum_states(A value) {
  for (int distance = kStates / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

/// Values of a chunk's tokens and a block's channels, in shared memory.
template <class A>
using Tile = A[kChunk][kChannels];

/// Where a thread works.
template <class T>
struct Worker {
  using A = acc_t<T>;
  const ScanInputs<T>& in;
  int64_t batch, chunks, channel;
  int local, lane;  // channel of the block, state of the group

  __device__ explicit Worker(const ScanInputs<T>& in) : in(in) {
    const int64_t blocks = (in.shape.channels + kChannels - 1) / kChannels;
    batch = blockIdx.x / blocks;
    chunks = (in.shape.length + kChunk - 1) / kChunk;
    local = threadIdx.x / kStates;
    lane = threadIdx.x % kStates;
    channel = blockIdx.x % blocks * kChannels + local;
  }
  __device__ int64_t tokens(int64_t chunk) const { return min(int64_t{kChunk}, in.shape.length - chunk * kChunk); }
  __device__ bool has(int64_t state) const { return channel < in.shape.channels && state < in.shape.states; }
  /// Of a state in [B,E,N].
  __device__ int64_t at(int64_t state) const { return (batch * in.shape.channels + channel) * in.shape.states + state; }
  __device__ int64_t checkpoint(int64_t chunk, int64_t state) const {
    return ((batch * chunks + chunk) * in.shape.states + state) * in.shape.channels + channel;
  }
  __device__ A rate(int64_t state) const { return has(state) ? A(in.A[channel * in.shape.states + state]) : A(0); }

  /// Calls body(t, c, channel) for the elements of a chunk's tile, neighbouring threads with neighbouring channels.
  template <class Body>
  __device__ void for_tile(int64_t tokens, const Body& body) const {
    const int c = threadIdx.x % kChannels;
    const int64_t own = channel - local + c;
    for (int64_t t = threadIdx.x / kChannels; t < tokens; t += kStates) body(t, c, own, own < in.shape.channels);
  }
  /// Step sizes before softplus.
  __device__ A raw_step(int64_t token, int64_t own) const {
    return A(row_of(in.delta, batch, token)[own]) + (in.delta_bias ? A(in.delta_bias[own]) : A(0));
  }
  /// The step sizes of a chunk, and the outputs as far as they come from D.
  __device__ void prepare(int64_t first, int64_t tokens, Tile<A>& steps, Tile<A>& outputs) const {
    for_tile(tokens, [&](int64_t t, int c, int64_t own, bool exists) {
      const A raw = exists ? raw_step(first + t, own) : A(0);
      steps[t][c] = in.delta_softplus ? functors::Softplus::value(raw) : raw;
      outputs[t][c] = exists && in.D ? A(in.D[own]) * A(row_of(in.u, batch, first + t)[own]) : A(0);
    });
  }
  __device__ A input(int64_t token) const {
    return channel < in.shape.channels ? A(row_of(in.u, batch, token)[channel]) : A(0);
  }
  __device__ A element(const TokenRows<const T>& rows, int64_t token, int64_t state) const {
    return state < in.shape.states ? A(row_of(rows, batch, token)[state]) : A(0);
  }
  /// Moves a state over a chunk's tokens; calls body(t, state before, state after).
  template <class Body>
  __device__ A advance(A h, int64_t state, int64_t first, int64_t tokens, const Tile<A>& steps,
                       const Body& body) const {
    const A own_rate = rate(state);
    for (int64_t t = 0; t < tokens; ++t) {
      const A step = steps[t][local], before = h;
      h = std::exp(step * own_rate) * h + step * input(first + t) * element(in.B, first + t, state);
      body(t, before, h);
    }
    return h;
  }
};

inline unsigned grid_of(const ScanShape& s) { return static_cast<unsigned>(s.batch * s.blocks()); }

}  // namespace margay::kernels::scan
