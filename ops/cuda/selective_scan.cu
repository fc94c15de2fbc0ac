#include "ops/selective_scan.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"
#include "ops/unary_functors.h"

namespace margay::kernels {
namespace {

// A block has kChannels neighbouring channels of one sequence, and kStates threads for each: a thread carries every
// kStates-th state, one group of states after the other through a chunk. Sums over states are shuffles among the
// threads of a channel.
constexpr int kChannels = ScanShape::kBlock, kStates = 16, kChunk = ScanShape::kChunk;
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

// workspace: the states between chunks, [B,E,N].
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(SelectiveScanFwd<T> a) {
  using A = acc_t<T>;
  __shared__ Tile<A> steps, outputs;
  const Worker<T> w(a.in);
  const ScanShape& s = a.in.shape;
  for (int64_t n = w.lane; n < s.states; n += kStates)
    if (w.has(n)) a.workspace[w.at(n)] = a.in.initial ? A(a.in.initial[w.at(n)]) : A(0);
  for (int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    const int64_t first = chunk * kChunk, tokens = w.tokens(chunk);
    w.prepare(first, tokens, steps, outputs);
    __syncthreads();
    for (int64_t group = 0; group < s.states; group += kStates) {
      const int64_t n = group + w.lane;
      const A before = w.has(n) ? a.workspace[w.at(n)] : A(0);
      if (a.checkpoints && w.has(n)) a.checkpoints[w.checkpoint(chunk, n)] = before;
      const A after = w.advance(before, n, first, tokens, steps, [&](int64_t t, A, A h) {
        const A sum = sum_states(h * w.element(a.in.C, first + t, n));
        if (w.lane == 0) outputs[t][w.local] += sum;
      });
      if (w.has(n)) a.workspace[w.at(n)] = after;
    }
    __syncthreads();
    w.for_tile(tokens, [&](int64_t t, int c, int64_t own, bool exists) {
      if (!exists) return;
      A y = outputs[t][c];
      if (a.in.z.data) y *= functors::Silu::value(A(row_of(a.in.z, w.batch, first + t)[own]));
      a.y[(w.batch * s.length + first + t) * s.channels + own] = T(y);
    });
    __syncthreads();
  }
  for (int64_t n = w.lane; n < s.states; n += kStates)
    if (w.has(n)) a.final[w.at(n)] = T(a.workspace[w.at(n)]);
}

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

unsigned grid_of(const ScanShape& s) { return static_cast<unsigned>(s.batch * s.blocks()); }

}  // namespace

template <class T>
void run(Cuda cuda, const SelectiveScanFwd<T>& a) {
  if (grid_of(a.in.shape) > 0) cuda::launch(cuda, dim3(grid_of(a.in.shape)), dim3(cuda::kThreads), forward<T>, a);
}

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

template void run(Cuda, const SelectiveScanFwd<float>&);
template void run(Cuda, const SelectiveScanFwd<double>&);
template void run(Cuda, const SelectiveScanFwd<bf16>&);
template void run(Cuda, const SelectiveScanBwd<float>&);
template void run(Cuda, const SelectiveScanBwd<double>&);
template void run(Cuda, const SelectiveScanBwd<bf16>&);

}  // namespace margay::kernels
