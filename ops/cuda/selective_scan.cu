#include "ops/cuda/selective_scan_starts.cuh"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is the forward half of it

constexpr int kChannels = 32;  // of a block
constexpr int kChunk = ScanShape::kGpuChunk;

template <class A>
struct Memory {
  Tile<A, kTileTokens<A>, kChannels> tiles[2];
  A gates[2][kTileTokens<A>][kChannels];
  A sums[kTileTokens<A>][kChannels];  // outputs between two groups of states
};

/// One tile of one group of states, which has been put into `m`. `only_group`: there is no other.
template <class T, bool only_group>
struct Advance {
  using A = acc_t<T>;
  const SelectiveScanFwd<T>& a;
  const Place& p;
  Memory<A>& m;
  int64_t token, group;
  int tokens, buffer;
  bool first_group, last_group;  // not read if it is the only one

  __device__ void operator()(A (&h)[kOwn], const A (&rate)[kOwn], A skip) const {
    const auto& tile = m.tiles[buffer];
    const ScanShape& s = a.in.shape;
    T* y_row = a.y + (p.batch * s.length + token + p.lane) * s.channels + p.channel;
    for (int chunk = 0; chunk < tokens; chunk += kChunk) {
      if (a.checkpoints) save(token + chunk, h);
#pragma unroll
      for (int quad = 0; quad < kChunk; quad += kLanes, y_row += kLanes * s.channels) {
        const int t = chunk + quad;
        A y[kLanes];
#pragma unroll
        for (int j = 0; j < kLanes; ++j) {
          const Two<A> step = tile.steps[t + j][p.local];
          const Own<A> B = tile.B[t + j][p.lane], C = tile.C[t + j][p.lane];
          const A input = step.first * step.second;
          y[j] = 0;
#pragma unroll
          for (int i = 0; i < kOwn; ++i) {
            h[i] = fast::exp2(step.first * rate[i]) * h[i] + input * B.x[i];
            y[j] += h[i] * C.x[i];
          }
        }
        write(t + p.lane, sum_lanes(y), skip, y_row);
      }
    }
  }

 private:
  __device__ void save(int64_t t, const A (&h)[kOwn]) const {
    const ScanShape& s = a.in.shape;
    const int64_t chunks = (s.length + kChunk - 1) / kChunk, row = (p.batch * chunks + t / kChunk) * s.states;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t n = p.state(group, i);
      if (p.exists && n < s.states) a.checkpoints[(row + n) * s.channels + p.channel] = h[i];
    }
  }
  /// `y` is the sum over the group.
  __device__ void write(int t, A y, A skip, T* to) const {
    const A input = m.tiles[buffer].steps[t][p.local].second;
    if constexpr (only_group) {
      y += skip * input;
    } else {
      y += first_group ? skip * input : m.sums[t][p.local];
      if (!last_group) {
        m.sums[t][p.local] = y;
        return;
      }
    }
    if (a.in.z.data) y *= m.gates[buffer][t][p.local];
    if (t < tokens && p.exists) *to = T(y);
  }
};

// workspace: the states of every stretch, [stretches, B, E, N].
template <class T, bool only_group>
__global__ void __launch_bounds__(kChannels* kLanes) forward(SelectiveScanFwd<T> a, Stretches stretches) {
  using A = acc_t<T>;
  constexpr int kTokens = kTileTokens<A>;
  __shared__ Memory<A> m;
  const ScanShape& s = a.in.shape;
  const Place p(s, stretches);
  const Walk<kTokens> walk(s, p, false);
  Loader<T, kTokens, kChannels> loader(a.in, {}, p);
  const A skip = a.in.D && p.exists ? A(a.in.D[p.channel]) : A(0);
  A h[kOwn] = {}, rate[kOwn] = {};
  loader.fetch(walk.token(0), walk.tokens(0), walk.group(0));
  for (int64_t step = 0; step < walk.steps(); ++step) {
    const int buffer = step % 2;
    loader.store(m.tiles[buffer], [&](int t, int c, A size, A u, A z, A) {
      m.tiles[buffer].steps[t][c] = {size, u};
      if (a.in.z.data) m.gates[buffer][t][c] = z * fast::sigmoid(z);
    });
    __syncthreads();
    if (step + 1 < walk.steps()) loader.fetch(walk.token(step + 1), walk.tokens(step + 1), walk.group(step + 1));
    const int64_t group = walk.group(step);
    if (!only_group || step == 0) {
      load_states(s, p, group, a.in.A, p.channel, A(fast::kLog2E), rate);
      if (walk.in_first_tile(step) && stretches.count == 1) {
        load_states(s, p, group, a.in.initial, p.row(s), A(1), h);
      } else {
        load_states(s, p, group, a.workspace, p.stretch_row(s), A(1), h);
      }
    }
    Advance<T, only_group>{
        a, p, m, walk.token(step), group, walk.tokens(step), buffer, group == 0, group + 1 == walk.groups}(h, rate,
                                                                                                           skip);
    if (!only_group) store_states(s, p, group, h, a.workspace, p.stretch_row(s));
    if (walk.in_last_tile(step) && p.stretch + 1 == stretches.count) store_states(s, p, group, h, a.final, p.row(s));
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const SelectiveScanFwd<T>& a) {
  const ScanShape& s = a.in.shape;
  const Stretches stretches = s.gpu_stretches();
  const unsigned grid = grid_of(s, stretches, kChannels);
  if (grid == 0) return;
  if (stretches.count > 1)
    find_starts<T, false>(cuda, a.in, nullptr, a.in.initial, stretches, a.workspace,
                          a.workspace + stretches.count * s.batch * s.channels * s.states, nullptr);
  cuda::launch(cuda, dim3(grid), dim3(kChannels * kLanes), s.states > kGroup ? forward<T, false> : forward<T, true>, a,
               stretches);
}

template void run(Cuda, const SelectiveScanFwd<float>&);
template void run(Cuda, const SelectiveScanFwd<double>&);
template void run(Cuda, const SelectiveScanFwd<bf16>&);

}  // namespace margay::kernels
