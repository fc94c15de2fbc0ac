#pragma once
#include "ops/cuda/selective_scan_worker.cuh"

// The states at the start of every stretch, or backwards in time their gradients at its end. A stretch alone turns
// states h into e^(A S) h + l, with S the sum of its step sizes and l what it makes of zeros: ends() finds S and l of
// all stretches, join() goes from one to the next.

namespace margay::kernels::scan {

inline constexpr int kStartChannels = 32;

/// Tokens of a tile, so that it takes the same memory in any precision.
template <class A>
inline constexpr int kTileTokens = 128 / sizeof(A);

/// states[stretches, B, E, N] = l, sums[stretches, B, E] = S.
template <class T, bool backwards>
__global__ void __launch_bounds__(kStartChannels* kLanes)
    ends(ScanInputs<T> in, const T* dy, Stretches stretches, acc_t<T>* states, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int kTokens = kTileTokens<A>;
  __shared__ Tile<A, kTokens, kStartChannels> tiles[2];
  const ScanShape& s = in.shape;
  const Place p(s, stretches);
  const Walk<kTokens> walk(s, p, backwards);
  (backwards ? in.B : in.C).data = nullptr;
  if (backwards) {
    in.u.data = nullptr;
  } else {
    in.z.data = nullptr;
  }
  Loader<T, kTokens, kStartChannels> loader(in, dense_rows(dy, s), p);
  A h[kOwn] = {}, rate[kOwn] = {}, sum(0);
  loader.fetch(walk.token(0), walk.tokens(0), walk.group(0));
  for (int64_t step = 0; step < walk.steps(); ++step) {
    auto& tile = tiles[step % 2];
    loader.store(tile, [&](int t, int c, A size, A u, A z, A g) {
      if (backwards && in.z.data) g *= z * fast::sigmoid(z);
      tile.steps[t][c] = {size, backwards ? g : u};
    });
    __syncthreads();
    if (step + 1 < walk.steps()) loader.fetch(walk.token(step + 1), walk.tokens(step + 1), walk.group(step + 1));
    const int64_t group = walk.group(step);
    if (walk.groups > 1 || step == 0) {
      load_states(s, p, group, in.A, p.channel, A(fast::kLog2E), rate);
      load_states(s, p, group, walk.in_first_tile(step) ? nullptr : states, p.stretch_row(s), A(1), h);
    }
#pragma unroll 4
    for (int i = 0; i < kTokens; ++i) {
      const int t = backwards ? kTokens - 1 - i : i;
      const Two<A> own = tile.steps[t][p.local];
      const Own<A> shares = backwards ? tile.C[t][p.lane] : tile.B[t][p.lane];
      const A input = backwards ? own.second : own.first * own.second;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        const A decay = fast::exp2(own.first * rate[k]);
        h[k] = backwards ? decay * (h[k] + input * shares.x[k]) : decay * h[k] + input * shares.x[k];
      }
      if (group == 0) sum += own.first;
    }
    if (walk.groups > 1 || walk.in_last_tile(step)) store_states(s, p, group, h, states, p.stretch_row(s));
  }
  if (p.exists && p.lane == 0) sums[p.stretch_row(s)] = sum;
}

/// Puts the states before every stretch, in the direction of time, where ends() has put l. `start` may be null; `last`
/// becomes the states after all stretches, unless it is null.
template <class T, bool backwards>
__global__ void __launch_bounds__(cuda::kThreads) join(ScanShape s, const T* rates, const T* start, Stretches stretches,
                                                       acc_t<T>* states, const acc_t<T>* sums, T* last) {
  using A = acc_t<T>;
  constexpr int kAtOnce = 8;  // stretches whose numbers are on their way together
  const int64_t size = s.batch * s.channels * s.states;
  for (int64_t i = cuda::first_index(); i < size; i += cuda::index_step()) {
    const A rate = A(fast::kLog2E) * A(rates[i % (s.channels * s.states)]);
    const int64_t channel = i / s.states;
    const auto stretch = [&](int64_t k) { return backwards ? stretches.count - 1 - k : k; };
    A h = start ? A(start[i]) : A(0);
    for (int64_t k = 0; k < stretches.count; k += kAtOnce) {
      A local[kAtOnce], sum[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const bool exists = k + j < stretches.count;
        local[j] = exists ? states[stretch(k + j) * size + i] : A(0);
        sum[j] = exists ? sums[stretch(k + j) * s.batch * s.channels + channel] : A(0);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (k + j < stretches.count) states[stretch(k + j) * size + i] = h;
        h = fast::exp2(rate * sum[j]) * h + local[j];
      }
    }
    if (last) last[i] = T(h);
  }
}

/// Both kernels. `dy` is for the way back.
template <class T, bool backwards>
void find_starts(Cuda cuda, const ScanInputs<T>& in, const T* dy, const T* start, const Stretches& stretches,
                 acc_t<T>* states, acc_t<T>* sums, T* last) {
  const ScanShape& s = in.shape;
  cuda::launch(cuda, dim3(grid_of(s, stretches, kStartChannels)), dim3(kStartChannels * kLanes), ends<T, backwards>, in,
               dy, stretches, states, sums);
  cuda::launch_elements(cuda, s.batch * s.channels * s.states, join<T, backwards>, s, in.A, start, stretches, states,
                        sums, last);
}

}  // namespace margay::kernels::scan
