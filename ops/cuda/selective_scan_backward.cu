#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/selective_scan_starts.cuh"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is the backward half of it

// Formulas: ops/cpu/selective_scan/backward.cpp. A tile is a chunk between two checkpoints: its states are made again
// and stay in registers. With the decay d = e^(dt A), what is kept is d and d h_{t-1}, from which h_t as well.
constexpr int kChannels = ScanShape::kGpuBlock, kTokens = ScanShape::kGpuChunk, kThreads = kChannels * kLanes;

/// Parts of the workspace.
template <class A>
struct Parts {
  A *carry, *dA;        // [stretches, B, E, N]: gradients of the states, and sums over a stretch
  A *dD, *ddelta_bias;  // [stretches, B, E]
  A *dB, *dC;           // [blocks of channels, B, L, N]

  HOST_DEVICE Parts(const ScanShape& s, const Stretches& stretches, A* memory) {
    const int64_t rows = stretches.count * s.batch * s.channels, blocks = (s.channels + kChannels - 1) / kChannels;
    carry = memory;
    dA = carry + rows * s.states;
    dD = dA + rows * s.states;
    ddelta_bias = dD + rows;
    dB = ddelta_bias + rows;
    dC = dB + blocks * s.batch * s.length * s.states;
  }
};

/// dB and dC of every channel, for some tokens and a group of states.
template <class A>
inline constexpr int kTogether = sizeof(A) == 4 ? 4 : 1;
template <class A>
using Products = Own<A>[2][kTogether<A>][kChannels][kLanes];

template <class A>
struct Memory {
  Tile<A, kTokens, kChannels> tile;
  Two<A> cotangents[kTokens][kChannels];  // of y before its gate, and dz / y
  Products<A> products[2];
  A sums[3][kTokens][kChannels];  // between two groups of states: see Retreat::write()
};

/// One tile of one group of states, which has been put into `m`. `only_group`: there is no other.
template <class T, bool only_group>
struct Retreat {
  using A = acc_t<T>;
  const SelectiveScanBwd<T>& a;
  const Parts<A>& parts;
  const Place& p;
  Memory<A>& m;
  int64_t token, group;
  int tokens;
  bool first_group, last_group;  // not read if it is the only one

  /// Of the thread: the states before the tile, their rates, the gradient of the states after the tile, which becomes
  /// that before it, and sums over tokens.
  struct Registers {
    A h[kOwn], rate[kOwn], carry[kOwn], dA[kOwn], skip, dD, dbias;
  };

  __device__ void operator()(Registers& own) const {
    A decays[kTokens][kOwn], decayed[kTokens][kOwn];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Two<A> step = m.tile.steps[t][p.local];
      const Own<A> B = m.tile.B[t][p.lane];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        decays[t][i] = fast::exp2(step.first * own.rate[i]);
        decayed[t][i] = decays[t][i] * own.h[i];
        own.h[i] = decayed[t][i] + step.first * step.second * B.x[i];
      }
    }
#pragma unroll
    for (int t = kTokens - kLanes; t >= 0; t -= kLanes) {
      A from_inputs[kLanes], from_decays[kLanes], outputs[kLanes];
#pragma unroll
      for (int j = kLanes - 1; j >= 0; --j) {
        const Two<A> step = m.tile.steps[t + j][p.local];
        const Own<A> B = m.tile.B[t + j][p.lane], C = m.tile.C[t + j][p.lane];
        const A dy = m.cotangents[t + j][p.local].first, input = step.first * step.second;
        Own<A> dB, dC;
        from_inputs[j] = from_decays[j] = outputs[j] = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const A g = own.carry[i] + dy * C.x[i], h = decayed[t + j][i] + input * B.x[i];
          const A p = g * decayed[t + j][i];
          dB.x[i] = input * g;
          dC.x[i] = dy * h;
          outputs[j] += h * C.x[i];
          from_inputs[j] += g * B.x[i];
          from_decays[j] += own.rate[i] * p;
          own.dA[i] += step.first * p;
          own.carry[i] = g * decays[t + j][i];
        }
        const int slot = j % kTogether<A>;
        auto& products = m.products[(t + j) / kTogether<A> % 2];
        products[0][slot][p.local][p.lane] = dB;
        products[1][slot][p.local][p.lane] = dC;
        if (slot == 0) {
          __syncthreads();
          sum_channels(t + j, products);
        }
      }
      write(t + p.lane, {sum_lanes(from_inputs), sum_lanes(from_decays), sum_lanes(outputs)}, own);
    }
  }

 private:
  struct Sums {
    A of[3];
  };

  /// A warp has one token of dB or of dC: four states for each of its threads, and every eighth channel.
  __device__ void sum_channels(int t, const Products<A>& products) const {
    constexpr int kParts = cuda::kWarp / kLanes;
    const int warp = threadIdx.x / cuda::kWarp, part = threadIdx.x % kParts, lane = threadIdx.x / kParts % kLanes;
    if (2 * kTogether<A> < kThreads / cuda::kWarp && warp >= 2 * kTogether<A>) return;
    A sum[kOwn] = {};
#pragma unroll
    for (int c = part; c < kChannels; c += kParts) {
      const Own<A> term = products[warp / kTogether<A>][warp % kTogether<A>][c][lane];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum[i] += term.x[i];
    }
    A total = sum_lanes(sum);
    total += __shfl_xor_sync(0xffffffffu, total, kLanes);
    const ScanShape& s = a.in.shape;
    const int64_t n = group * kGroup + lane * kOwn + part;
    t += warp % kTogether<A>;
    if (part >= kOwn || n >= s.states || t >= tokens) return;
    const int64_t row = (p.corner / kChannels * s.batch + p.batch) * s.length + token + t;
    (warp < kTogether<A> ? parts.dB : parts.dC)[row * s.states + n] = total;
  }

  /// du, ddelta and dz of a token, from the sums over states of B g, of A p / ln 2 and of C h.
  __device__ void write(int t, Sums sums, Registers& own) const {
    const ScanShape& s = a.in.shape;
    if constexpr (!only_group) {
      for (int k = 0; k < 3; ++k) {
        if (!first_group) sums.of[k] += m.sums[k][t][p.local];
        if (!last_group) m.sums[k][t][p.local] = sums.of[k];
      }
      if (!last_group) return;
    }
    const auto [step, u] = m.tile.steps[t][p.local];
    const auto [dy, slope] = m.cotangents[t][p.local];
    A ddelta = u * sums.of[0] + A(fast::kLn2) * sums.of[1];
    if (a.in.delta_softplus) ddelta *= fast::softplus_derivative(step);
    own.dD += dy * u;
    if (t < tokens && p.exists) {
      const int64_t at = (p.batch * s.length + token + t) * s.channels + p.channel;
      a.du[at] = T(step * sums.of[0] + own.skip * dy);
      a.ddelta[at] = T(ddelta);
      if (a.dz) a.dz[at] = T(slope * (sums.of[2] + own.skip * u));
      own.dbias += ddelta;
    }
  }
};

template <class T, bool only_group>
__global__ void __launch_bounds__(kThreads) backward(SelectiveScanBwd<T> a, Stretches stretches) {
  using A = acc_t<T>;
  auto& m = cuda::dynamic_shared<Memory<A>>();
  const ScanShape& s = a.in.shape;
  const Parts<A> parts(s, stretches, a.workspace);
  const Place p(s, stretches);
  const Walk<kTokens> walk(s, p, true);
  Loader<T, kTokens, kChannels> loader(a.in, dense_rows(a.dy, s), p);
  typename Retreat<T, only_group>::Registers own{};
  own.skip = a.in.D && p.exists ? A(a.in.D[p.channel]) : A(0);
  A next[kOwn];  // the checkpoint of the next step
  const auto fetch = [&](int64_t step) {
    loader.fetch(walk.token(step), walk.tokens(step), walk.group(step));
    const int64_t chunks = (s.length + kTokens - 1) / kTokens;
    const int64_t row = (p.batch * chunks + walk.token(step) / kTokens) * s.states;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t n = p.state(walk.group(step), i);
      const bool exists = p.exists && n < s.states && walk.tokens(step) > 0;
      next[i] = exists ? a.checkpoints[(row + n) * s.channels + p.channel] : A(0);
    }
  };
  fetch(0);
  for (int64_t step = 0; step < walk.steps(); ++step) {
    const int64_t group = walk.group(step);
    loader.store(m.tile, [&](int t, int c, A size, A u, A z, A dy) {
      A slope(0);
      if (a.in.z.data) {
        const A share = fast::sigmoid(z), gate = z * share;
        slope = dy * (share + gate * (A(1) - share));
        dy *= gate;
      }
      m.tile.steps[t][c] = {size, u};
      m.cotangents[t][c] = {dy, slope};
    });
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own.h[i] = next[i];
    __syncthreads();
    if (step + 1 < walk.steps()) fetch(step + 1);
    if (!only_group || step == 0) {
      load_states(s, p, group, a.in.A, p.channel, A(fast::kLog2E), own.rate);
      if (walk.in_first_tile(step) && stretches.count == 1) {
        load_states(s, p, group, a.dfinal, p.row(s), A(1), own.carry);
      } else {
        load_states(s, p, group, parts.carry, p.stretch_row(s), A(1), own.carry);
      }
      load_states(s, p, group, walk.in_first_tile(step) ? nullptr : parts.dA, p.stretch_row(s), A(1), own.dA);
    }
    Retreat<T, only_group>{
        a, parts, p, m, walk.token(step), group, walk.tokens(step), group == 0, group + 1 == walk.groups}(own);
    if (!only_group) store_states(s, p, group, own.carry, parts.carry, p.stretch_row(s));
    if (!only_group || walk.in_last_tile(step)) store_states(s, p, group, own.dA, parts.dA, p.stretch_row(s));
    if (a.dinitial && walk.in_last_tile(step) && stretches.count == 1)
      store_states(s, p, group, own.carry, a.dinitial, p.row(s));
    __syncthreads();  // before the next tile takes the place of this one
  }
  for (int distance = 1; distance < kLanes; distance *= 2) {
    own.dD += __shfl_xor_sync(0xffffffffu, own.dD, distance);
    own.dbias += __shfl_xor_sync(0xffffffffu, own.dbias, distance);
  }
  if (!p.exists || p.lane > 0) return;
  parts.dD[p.stretch_row(s)] = own.dD;
  parts.ddelta_bias[p.stretch_row(s)] = own.dbias;
}

}  // namespace

template <class T>
void run(Cuda cuda, const SelectiveScanBwd<T>& a) {
  using A = acc_t<T>;
  const ScanShape& s = a.in.shape;
  const Stretches stretches = s.gpu_stretches();
  const Parts<A> parts(s, stretches, a.workspace);
  const unsigned grid = grid_of(s, stretches, kChannels);
  if (grid > 0 && stretches.count > 1)  // the sums of step sizes have gone when dD takes their place
    find_starts<T, true>(cuda, a.in, a.dy, a.dfinal, stretches, parts.carry, parts.dD, a.dinitial);
  if (grid > 0)
    cuda::launch_shared(cuda, dim3(grid), dim3(kThreads), sizeof(Memory<A>),
                        s.states > kGroup ? backward<T, false> : backward<T, true>, a, stretches);
  const auto sum = [&](const A* from, int64_t count, int64_t size, T* to) {
    if (to) cuda::join_pieces(cuda, from, count, size, cuda::ColumnTotals<1, T>{{to}});
  };
  sum(parts.dA, stretches.count * s.batch, s.channels * s.states, a.dA);
  sum(parts.dD, stretches.count * s.batch, s.channels, a.dD);
  sum(parts.ddelta_bias, stretches.count * s.batch, s.channels, a.ddelta_bias);
  sum(parts.dB, s.gpu_blocks(), s.batch * s.length * s.states, a.dB);
  sum(parts.dC, s.gpu_blocks(), s.batch * s.length * s.states, a.dC);
}

template void run(Cuda, const SelectiveScanBwd<float>&);
template void run(Cuda, const SelectiveScanBwd<double>&);
template void run(Cuda, const SelectiveScanBwd<bf16>&);

}  // namespace margay::kernels
