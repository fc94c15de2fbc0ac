#include "ops/cuda/selective_scan_worker.cuh"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is the backward half of it

// Formulas: ops/cpu/selective_scan/backward.cpp.
constexpr int kProducts = 4;  // tokens whose dB and dC are summed over channels at a time

/// Parts of the workspace.
template <class A>
struct Parts {
  A *carry, *dA;        // [B,E,N]: gradients of the states between chunks, and sums over a sequence
  A *dD, *ddelta_bias;  // [B,E]
  A *dB, *dC;           // [blocks of channels, B, L, N]

  HOST_DEVICE Parts(const ScanShape& s, A* memory) {
    const int64_t states = s.batch * s.channels * s.states, blocks = (s.channels + kChannels - 1) / kChannels;
    carry = memory;
    dA = carry + states;
    dD = dA + states;
    ddelta_bias = dD + s.batch * s.channels;
    dB = ddelta_bias + s.batch * s.channels;
    dC = dB + blocks * s.batch * s.length * s.states;
  }
};

template <class A>
struct BackwardMemory {
  Tile<A> steps, outputs, from_inputs, from_decays;
  A products[2][kProducts][kChannels][kStates];
};

// One group of states of one chunk, backwards in time.
template <class T>
__device__ void retreat(const SelectiveScanBwd<T>& a, const Worker<T>& w, const Parts<acc_t<T>>& parts,
                        BackwardMemory<acc_t<T>>& m, int64_t chunk, int64_t group) {
  using A = acc_t<T>;
  const ScanShape& s = a.in.shape;
  const int64_t first = chunk * kChunk, tokens = w.tokens(chunk), n = group + w.lane;
  A history[kChunk + 1];
  history[0] = w.has(n) ? a.checkpoints[w.checkpoint(chunk, n)] : A(0);
  w.advance(history[0], n, first, tokens, m.steps, [&](int64_t t, A, A h) { history[t + 1] = h; });
  A carry = w.has(n) ? parts.carry[w.at(n)] : A(0), drate = w.has(n) ? parts.dA[w.at(n)] : A(0);
  const A rate = w.rate(n);
  for (int64_t end = tokens; end > 0; end -= kProducts) {
    const int64_t begin = max(int64_t{0}, end - kProducts);
    for (int64_t t = end - 1; t >= begin; --t) {
      const A step = m.steps[t][w.local], dy = m.outputs[t][w.local];
      const A g = carry + dy * w.element(a.in.C, first + t, n);
      m.products[0][t - begin][w.local][w.lane] = step * w.input(first + t) * g;
      m.products[1][t - begin][w.local][w.lane] = dy * history[t + 1];
      carry = g * std::exp(step * rate);
      const A p = carry * history[t];
      drate += step * p;
      const A from_input = sum_states(g * w.element(a.in.B, first + t, n)), from_decay = sum_states(rate * p);
      if (w.lane == 0) m.from_inputs[t][w.local] += from_input, m.from_decays[t][w.local] += from_decay;
    }
    __syncthreads();
    const int which = threadIdx.x / (kProducts * kStates), token = threadIdx.x / kStates % kProducts;
    if (which < 2 && begin + token < end && n < s.states) {
      A sum(0);
      for (int c = 0; c < kChannels; ++c) sum += m.products[which][token][c][w.lane];
      const int64_t block = (w.channel - w.local) / kChannels;
      const int64_t at = ((block * s.batch + w.batch) * s.length + first + begin + token) * s.states + n;
      (which == 0 ? parts.dB : parts.dC)[at] = sum;
    }
    __syncthreads();
  }
  if (w.has(n)) parts.carry[w.at(n)] = carry, parts.dA[w.at(n)] = drate;
}

// With a gate, the outputs (which are computed again) give dz; then they make place for their cotangents.
template <class T>
__device__ void pull_back_gate(const SelectiveScanBwd<T>& a, const Worker<T>& w, BackwardMemory<acc_t<T>>& m,
                               int64_t chunk) {
  using A = acc_t<T>;
  const ScanShape& s = a.in.shape;
  const int64_t first = chunk * kChunk, tokens = w.tokens(chunk);
  if (a.dz) {
    for (int64_t group = 0; group < s.states; group += kStates) {
      const int64_t n = group + w.lane;
      const A before = w.has(n) ? a.checkpoints[w.checkpoint(chunk, n)] : A(0);
      w.advance(before, n, first, tokens, m.steps, [&](int64_t t, A, A h) {
        const A sum = sum_states(h * w.element(a.in.C, first + t, n));
        if (w.lane == 0) m.outputs[t][w.local] += sum;
      });
    }
  }
  __syncthreads();
  w.for_tile(tokens, [&](int64_t t, int c, int64_t own, bool exists) {
    const int64_t at = (w.batch * s.length + first + t) * s.channels + own;
    A dy = exists ? A(a.dy[at]) : A(0);
    if (a.dz && exists) {
      const A z(row_of(a.in.z, w.batch, first + t)[own]), share = functors::Sigmoid::value(z), gate = z * share;
      a.dz[at] = T(dy * m.outputs[t][c] * (share + gate * (A(1) - share)));
      dy *= gate;
    }
    m.outputs[t][c] = dy;
    m.from_inputs[t][c] = m.from_decays[t][c] = 0;
  });
  __syncthreads();
}

// du, ddelta and what the chunk adds to the sums of D and the bias.
template <class T>
__device__ void write(const SelectiveScanBwd<T>& a, const Worker<T>& w, BackwardMemory<acc_t<T>>& m, int64_t chunk,
                      acc_t<T>& dD, acc_t<T>& dbias) {
  using A = acc_t<T>;
  const ScanShape& s = a.in.shape;
  const int64_t first = chunk * kChunk, tokens = w.tokens(chunk);
  w.for_tile(tokens, [&](int64_t t, int c, int64_t own, bool exists) {
    if (!exists) return;
    const A u(row_of(a.in.u, w.batch, first + t)[own]), dy = m.outputs[t][c], step = m.steps[t][c];
    const int64_t at = (w.batch * s.length + first + t) * s.channels + own;
    a.du[at] = T(step * m.from_inputs[t][c] + (a.in.D ? A(a.in.D[own]) * dy : A(0)));
    A ddelta = u * m.from_inputs[t][c] + m.from_decays[t][c];
    if (a.in.delta_softplus) ddelta *= std::exp(w.raw_step(first + t, own) - step);
    a.ddelta[at] = T(ddelta);
    dD += dy * u;
    dbias += ddelta;
  });
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(SelectiveScanBwd<T> a) {
  using A = acc_t<T>;
  __shared__ BackwardMemory<A> m;
  const Worker<T> w(a.in);
  const ScanShape& s = a.in.shape;
  const Parts<A> parts(s, a.workspace);
  for (int64_t n = w.lane; n < s.states; n += kStates) {
    if (!w.has(n)) continue;
    parts.carry[w.at(n)] = a.dfinal ? A(a.dfinal[w.at(n)]) : A(0);
    parts.dA[w.at(n)] = 0;
  }
  A dD(0), dbias(0);  // of channel threadIdx.x % kChannels, over the tokens that for_tile() gives this thread
  for (int64_t chunk = w.chunks - 1; chunk >= 0; --chunk) {
    w.prepare(chunk * kChunk, w.tokens(chunk), m.steps, m.outputs);
    __syncthreads();
    pull_back_gate(a, w, m, chunk);
    for (int64_t group = 0; group < s.states; group += kStates) retreat(a, w, parts, m, chunk, group);
    __syncthreads();
    write(a, w, m, chunk, dD, dbias);
  }
  for (int64_t n = w.lane; n < s.states; n += kStates)
    if (a.dinitial && w.has(n)) a.dinitial[w.at(n)] = T(parts.carry[w.at(n)]);
  // Sums over the kStates threads that share a channel of the tile.
  const int c = threadIdx.x % kChannels, part = threadIdx.x / kChannels;
  __syncthreads();
  m.steps[part][c] = dD;
  m.outputs[part][c] = dbias;
  __syncthreads();
  if (part > 0 || w.channel - w.local + c >= s.channels) return;
  for (int other = 1; other < kStates; ++other) dD += m.steps[other][c], dbias += m.outputs[other][c];
  parts.dD[w.batch * s.channels + w.channel - w.local + c] = dD;
  parts.ddelta_bias[w.batch * s.channels + w.channel - w.local + c] = dbias;
}

// to[i] = the sum over `count` neighbours of from[k size + i].
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) sum_parts(const acc_t<T>* from, int64_t count, int64_t size, T* to) {
  for (int64_t i = cuda::first_index(); i < size; i += cuda::index_step()) {
    acc_t<T> sum(0);
    for (int64_t k = 0; k < count; ++k) sum += from[k * size + i];
    to[i] = T(sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const SelectiveScanBwd<T>& a) {
  const ScanShape& s = a.in.shape;
  const Parts<acc_t<T>> parts(s, a.workspace);
  if (grid_of(s) > 0) cuda::launch(cuda, dim3(grid_of(s)), dim3(cuda::kThreads), backward<T>, a);
  const auto sum = [&](const acc_t<T>* from, int64_t count, int64_t size, T* to) {
    if (to) cuda::launch_elements(cuda, size, sum_parts<T>, from, count, size, to);
  };
  sum(parts.dA, s.batch, s.channels * s.states, a.dA);
  sum(parts.dD, s.batch, s.channels, a.dD);
  sum(parts.ddelta_bias, s.batch, s.channels, a.ddelta_bias);
  sum(parts.dB, s.blocks(), s.batch * s.length * s.states, a.dB);
  sum(parts.dC, s.blocks(), s.batch * s.length * s.states, a.dC);
}

template void run(Cuda, const SelectiveScanBwd<float>&);
template void run(Cuda, const SelectiveScanBwd<double>&);
template void run(Cuda, const SelectiveScanBwd<bf16>&);

}  // namespace margay::kernels
