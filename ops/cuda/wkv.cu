#include "ops/wkv.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/fast_math.cuh"

namespace margay::kernels {
namespace {

// A thread goes through one channel of a stretch of tokens; neighbouring threads have neighbouring channels. Formulas
// and the reason for every exponent: ops/cpu/wkv.cpp.

constexpr int kChunk = WkvShape::kGpuChunk;  // tokens that are on their way together

// The logarithm of nothing, far from the end of the range: two of them can be added.
constexpr double kLogOfNothing = -1e38;

/// e^x and e^y, both times e^-top, top being the larger of x and y.
template <class A>
struct Pair {
  A x, y, top;
  __device__ Pair(A a, A b) {
    const A smaller = fast::exp(-std::abs(a - b));
    x = a >= b ? A(1) : smaller;
    y = a >= b ? smaller : A(1);
    top = a >= b ? a : b;
  }
};

/// Sums over the tokens seen: numerator p e^o, denominator q e^o. Backwards, the cotangents of both.
template <class A>
struct State {
  A p = 0, q = 0, o = A(kLogOfNothing);

  template <class T>
  __device__ static State load(const T* rows, int64_t stride) {
    return {A(rows[0]), A(rows[stride]), A(rows[2 * stride])};
  }
  template <class T>
  __device__ void store(T* rows, int64_t stride) const {
    rows[0] = T(p);
    rows[stride] = T(q);
    rows[2 * stride] = T(o);
  }
  /// The sum of both, after a decay of this one.
  __device__ void add(A decay, const State& other) {
    const Pair<A> share(decay + o, other.o);
    p = share.x * p + share.y * other.p;
    q = share.x * q + share.y * other.q;
    o = share.top;
  }
};

/// y_t = numerator / denominator, 1 / the denominator times e^-top, and the current token's part of it.
template <class A>
struct Output {
  A y, inverse, top, current;
  __device__ Output(const State<A>& state, A bonus, A key, A value) {
    const Pair<A> share(state.o, bonus + key);
    inverse = fast::reciprocal(share.x * state.q + share.y);
    y = (share.x * state.p + share.y * value) * inverse;
    top = share.top;
    current = share.y;
  }
};

/// Where a thread works.
struct Place {
  int64_t batch, channel, begin, end;  // tokens of the stretch
  int64_t row;                         // of [.., B, L, C], its first token
  int64_t state;                       // of [stretches, B, 3, C]
  bool last;

  __device__ Place(const WkvShape& s, const Stretches& stretches, int64_t i) {
    const int64_t stretch = i / s.channels / s.batch;
    channel = i % s.channels;
    batch = i / s.channels % s.batch;
    begin = stretch * stretches.tokens;
    end = min(begin + stretches.tokens, s.length);
    row = (batch * s.length + begin) * s.channels + channel;
    state = i / s.channels * 3 * s.channels + channel;
    last = stretch + 1 == stretches.count;
  }
  /// Of [B, chunks, 3, C].
  __device__ int64_t checkpoint(const WkvShape& s, int64_t token) const {
    return (batch * ((s.length + kChunk - 1) / kChunk) + token / kChunk) * 3 * s.channels + channel;
  }
};

/// The elements of a channel at `count` neighbouring tokens; zeros after them.
template <class T>
__device__ void load(const T* from, int64_t stride, int count, acc_t<T> (&to)[kChunk]) {
#pragma unroll
  for (int t = 0; t < kChunk; ++t) to[t] = t < count ? acc_t<T>(from[t * stride]) : acc_t<T>(0);
}

__device__ int tokens_from(const Place& p, int64_t token) {
  return static_cast<int>(min(int64_t{kChunk}, p.end - token));
}

/// Without outputs: what every stretch makes of nothing, to the workspace.
template <class T, bool outputs>
__global__ void __launch_bounds__(cuda::kThreads) forward(WkvFwd<T> a, Stretches stretches) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  for (int64_t i = cuda::first_index(); i < stretches.count * s.batch * s.channels; i += cuda::index_step()) {
    const Place p(s, stretches, i);
    const A w(a.in.w[p.channel]), u(a.in.u[p.channel]);
    State<A> state;
    if (outputs && stretches.count > 1) {
      state = State<A>::load(a.workspace + p.state, s.channels);
    } else if (outputs && a.in.initial) {
      state = State<A>::load(a.in.initial + p.state, s.channels);
    }
    int64_t at = p.row;
    for (int64_t first = p.begin; first < p.end; first += kChunk, at += kChunk * s.channels) {
      const int tokens = tokens_from(p, first);
      A keys[kChunk], values[kChunk];
      load(a.in.k + at, s.channels, tokens, keys);
      load(a.in.v + at, s.channels, tokens, values);
      if (outputs && a.checkpoints) state.store(a.checkpoints + p.checkpoint(s, first), s.channels);
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        if (t >= tokens) break;
        if (outputs) a.y[at + t * s.channels] = T(Output<A>(state, u, keys[t], values[t]).y);
        state.add(w, {values[t], A(1), keys[t]});
      }
    }
    if (!outputs) {
      state.store(a.workspace + p.state, s.channels);
    } else if (p.last) {
      state.store(a.final + p.batch * 3 * s.channels + p.channel, s.channels);
    }
  }
}

/// Puts the state before every stretch, in the direction of time, where what it makes of nothing has been.
template <class T, bool backwards>
__global__ void __launch_bounds__(cuda::kThreads) join(WkvInputs<T> in, Stretches stretches, acc_t<T>* states) {
  using A = acc_t<T>;
  constexpr int kAtOnce = 8;  // states that are on their way together
  const WkvShape& s = in.shape;
  for (int64_t i = cuda::first_index(); i < s.batch * s.channels; i += cuda::index_step()) {
    const int64_t row = i / s.channels * 3 * s.channels + i % s.channels;
    const A w(in.w[i % s.channels]);
    const auto stretch = [&](int64_t k) { return backwards ? stretches.count - 1 - k : k; };
    const auto at = [&](int64_t k) { return states + stretch(k) * s.batch * 3 * s.channels + row; };
    State<A> state;
    if (!backwards && in.initial) state = State<A>::load(in.initial + row, s.channels);
    for (int64_t first = 0; first < stretches.count; first += kAtOnce) {
      State<A> local[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (first + k < stretches.count) local[k] = State<A>::load(at(first + k), s.channels);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k >= stretches.count) break;
        state.store(at(first + k), s.channels);
        // The last stretch may be shorter, but nothing decays over it: forwards its end is not asked for.
        state.add(w * static_cast<A>(stretches.tokens), local[k]);
      }
    }
  }
}

/// Parts of the workspace.
template <class A>
struct Parts {
  A* states;     // [stretches, B, 3, C]: cotangents of the sums after every stretch
  A *dw, *du;    // [stretches, B, C]
  int64_t rows;  // stretches * B

  HOST_DEVICE Parts(const WkvShape& s, const Stretches& stretches, A* memory) : rows(stretches.count * s.batch) {
    states = memory;
    dw = states + rows * 3 * s.channels;
    du = dw + rows * s.channels;
  }
};

/// Without gradients: what every stretch makes of cotangents that are nothing, to the workspace.
template <class T, bool gradients>
__global__ void __launch_bounds__(cuda::kThreads) backward(WkvBwd<T> a, Stretches stretches) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  const Parts<A> parts(s, stretches, a.workspace);
  for (int64_t i = cuda::first_index(); i < parts.rows * s.channels; i += cuda::index_step()) {
    const Place p(s, stretches, i);
    const A w(a.in.w[p.channel]), u(a.in.u[p.channel]);
    A dw(0), du(0);
    State<A> later;  // the cotangents of the sums after a token
    if (gradients && stretches.count > 1) later = State<A>::load(parts.states + p.state, s.channels);
    for (int64_t first = (p.end - 1) / kChunk * kChunk; first >= p.begin && first < p.end; first -= kChunk) {
      const int tokens = tokens_from(p, first);
      const int64_t at = p.row + (first - p.begin) * s.channels;
      A keys[kChunk], values[kChunk], dy[kChunk];
      load(a.in.k + at, s.channels, tokens, keys);
      load(a.in.v + at, s.channels, tokens, values);
      load(a.dy + at, s.channels, tokens, dy);
      State<A> history[kChunk];
      history[0] = State<A>::load(a.checkpoints + p.checkpoint(s, first), s.channels);
#pragma unroll
      for (int t = 1; t < kChunk; ++t) {
        history[t] = history[t - 1];
        history[t].add(w, {values[t - 1], A(1), keys[t - 1]});
      }
#pragma unroll
      for (int t = kChunk - 1; t >= 0; --t) {
        if (t >= tokens) continue;
        const Output<A> out(history[t], u, keys[t], values[t]);
        const A g = dy[t] * out.inverse;
        if (gradients) {
          const State<A>& before = history[t];
          const A direct = out.current * g, share = fast::exp(keys[t] + later.o), dkey = direct * (values[t] - out.y);
          a.dv[at + t * s.channels] = T(direct + share * later.p);
          a.dk[at + t * s.channels] = T(dkey + share * (values[t] * later.p + later.q));
          du += dkey;
          dw += fast::exp(before.o + w + later.o) * (before.p * later.p + before.q * later.q);
        }
        later.add(w, {g, -g * out.y, -out.top});
      }
    }
    if (!gradients) {
      later.store(parts.states + p.state, s.channels);
    } else {
      parts.dw[i] = dw;
      parts.du[i] = du;
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const WkvFwd<T>& a) {
  const WkvShape& s = a.in.shape;
  const Stretches stretches = s.gpu_stretches();
  const int64_t threads = stretches.count * s.batch * s.channels;
  if (stretches.count > 1) {
    cuda::launch_elements(cuda, threads, forward<T, false>, a, stretches);
    cuda::launch_elements(cuda, s.batch * s.channels, join<T, false>, a.in, stretches, a.workspace);
  }
  cuda::launch_elements(cuda, threads, forward<T, true>, a, stretches);
}

template <class T>
void run(Cuda cuda, const WkvBwd<T>& a) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  const Stretches stretches = s.gpu_stretches();
  const Parts<A> parts(s, stretches, a.workspace);
  if (stretches.count > 1) {
    cuda::launch_elements(cuda, parts.rows * s.channels, backward<T, false>, a, stretches);
    cuda::launch_elements(cuda, s.batch * s.channels, join<T, true>, a.in, stretches, parts.states);
  }
  cuda::launch_elements(cuda, parts.rows * s.channels, backward<T, true>, a, stretches);
  cuda::join_pieces(cuda, parts.dw, parts.rows, s.channels, cuda::ColumnTotals<1, T>{{a.dw}});
  cuda::join_pieces(cuda, parts.du, parts.rows, s.channels, cuda::ColumnTotals<1, T>{{a.du}});
}

template void run(Cuda, const WkvFwd<float>&);
template void run(Cuda, const WkvFwd<double>&);
template void run(Cuda, const WkvFwd<bf16>&);
template void run(Cuda, const WkvBwd<float>&);
template void run(Cuda, const WkvBwd<double>&);
template void run(Cuda, const WkvBwd<bf16>&);

}  // namespace margay::kernels
