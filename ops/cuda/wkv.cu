#include "ops/wkv.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

// A thread per channel of a sequence goes through all tokens; neighbouring threads have neighbouring channels. Formulas
// and the reason for every exponent: ops/cpu/wkv.cpp.

// The logarithm of nothing, far from the end of the range: two of them can be added.
constexpr double kLogOfNothing = -1e38;

/// e^x and e^y, both times e^-top, top being the larger of x and y.
template <class A>
struct Pair {
  A x, y, top;
  __device__ Pair(A a, A b) {
    const A smaller = std::exp(-std::abs(a - b));
    x = a >= b ? A(1) : smaller;
    y = a >= b ? smaller : A(1);
    top = a >= b ? a : b;
  }
};

/// Sums over the tokens seen: numerator p e^o, denominator q e^o.
template <class A>
struct State {
  A p, q, o;

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
  __device__ void add(A w, A key, A value) {
    const Pair<A> share(w + o, key);
    p = share.x * p + share.y * value;
    q = share.x * q + share.y;
    o = share.top;
  }
};

/// y_t = numerator / denominator, the denominator times e^-top, and the current token's part of it.
template <class A>
struct Output {
  A y, denominator, top, current;
  __device__ Output(const State<A>& state, A bonus, A key, A value) {
    const Pair<A> share(state.o, bonus + key);
    denominator = share.x * state.q + share.y;
    y = (share.x * state.p + share.y * value) / denominator;
    top = share.top;
    current = share.y;
  }
};

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(WkvFwd<T> a) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  const int64_t chunks = (s.length + s.kChunk - 1) / s.kChunk;
  for (int64_t i = cuda::first_index(); i < s.batch * s.channels; i += cuda::index_step()) {
    const int64_t b = i / s.channels, c = i % s.channels;
    const A w(a.in.w[c]), u(a.in.u[c]);
    State<A> state{A(0), A(0), A(kLogOfNothing)};
    if (a.in.initial) state = State<A>::load(a.in.initial + b * 3 * s.channels + c, s.channels);
    for (int64_t t = 0; t < s.length; ++t) {
      if (a.checkpoints && t % s.kChunk == 0)
        state.store(a.checkpoints + (b * chunks + t / s.kChunk) * 3 * s.channels + c, s.channels);
      const int64_t at = (b * s.length + t) * s.channels + c;
      const A key(a.in.k[at]), value(a.in.v[at]);
      a.y[at] = T(Output<A>(state, u, key, value).y);
      state.add(w, key, value);
    }
    state.store(a.final + b * 3 * s.channels + c, s.channels);
  }
}

// The gradients of one channel of one sequence; its sums of dw and du go to workspace[2,B,C].
template <class T>
__device__ void retreat(const WkvBwd<T>& a, int64_t b, int64_t c) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  const int64_t chunks = (s.length + s.kChunk - 1) / s.kChunk;
  const A w(a.in.w[c]), u(a.in.u[c]);
  A dw(0), du(0), r(0), z(0), top(kLogOfNothing);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    State<A> history[WkvShape::kChunk];
    const int64_t tokens = min(int64_t{WkvShape::kChunk}, s.length - chunk * s.kChunk);
    const int64_t first = (b * s.length + chunk * s.kChunk) * s.channels + c;
    State<A> state = State<A>::load(a.checkpoints + (b * chunks + chunk) * 3 * s.channels + c, s.channels);
    for (int64_t t = 0; t < tokens; ++t) {
      history[t] = state;
      state.add(w, A(a.in.k[first + t * s.channels]), A(a.in.v[first + t * s.channels]));
    }
    for (int64_t t = tokens - 1; t >= 0; --t) {
      const int64_t at = first + t * s.channels;
      const A key(a.in.k[at]), value(a.in.v[at]);
      const State<A> before = history[t];
      const Output<A> out(before, u, key, value);
      const A g = A(a.dy[at]) / out.denominator, direct = out.current * g;
      const A later = std::exp(key + top), dkey = direct * (value - out.y);
      a.dv[at] = T(direct + later * r);
      a.dk[at] = T(dkey + later * (value * r + z));
      du += dkey;
      dw += std::exp(before.o + w + top) * (before.p * r + before.q * z);
      const Pair<A> share(-out.top, w + top);
      r = share.x * g + share.y * r;
      z = share.y * z - share.x * g * out.y;
      top = share.top;
    }
  }
  a.workspace[b * s.channels + c] = dw;
  a.workspace[(s.batch + b) * s.channels + c] = du;
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(WkvBwd<T> a) {
  const WkvShape& s = a.in.shape;
  for (int64_t i = cuda::first_index(); i < s.batch * s.channels; i += cuda::index_step())
    retreat(a, i / s.channels, i % s.channels);
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) sum_sequences(WkvBwd<T> a) {
  using A = acc_t<T>;
  const WkvShape& s = a.in.shape;
  for (int64_t c = cuda::first_index(); c < s.channels; c += cuda::index_step()) {
    A dw(0), du(0);
    for (int64_t b = 0; b < s.batch; ++b) {
      dw += a.workspace[b * s.channels + c];
      du += a.workspace[(s.batch + b) * s.channels + c];
    }
    a.dw[c] = T(dw);
    a.du[c] = T(du);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const WkvFwd<T>& a) {
  cuda::launch_elements(cuda, a.in.shape.batch * a.in.shape.channels, forward<T>, a);
}

template <class T>
void run(Cuda cuda, const WkvBwd<T>& a) {
  cuda::launch_elements(cuda, a.in.shape.batch * a.in.shape.channels, backward<T>, a);
  cuda::launch_elements(cuda, a.in.shape.channels, sum_sequences<T>, a);
}

template void run(Cuda, const WkvFwd<float>&);
template void run(Cuda, const WkvFwd<double>&);
template void run(Cuda, const WkvFwd<bf16>&);
template void run(Cuda, const WkvBwd<float>&);
template void run(Cuda, const WkvBwd<double>&);
template void run(Cuda, const WkvBwd<bf16>&);

}  // namespace margay::kernels
