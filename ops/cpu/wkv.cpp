#include "ops/wkv.h"
#include "engine/parallel.h"

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

template <class T>
constexpr int64_t kLanes = simd::Vec<T>::size;

// The logarithm of nothing, far from the end of the range: two of them can be added.
constexpr double kLogOfNothing = -1e38;

// One vector of channels of one sequence.
struct Block {
  int64_t batch, channel, lanes;
};

// e^x and e^y, both times e^-top, top being the larger of x and y.
template <class T>
struct Pair {
  simd::Vec<T> x, y, top;
};
template <class T>
Pair<T> scaled(simd::Vec<T> x, simd::Vec<T> y) {
  const auto larger = x >= y;
  const simd::Vec<T> smaller = exp(-abs(x - y));
  return {select(larger, T(1), smaller), select(larger, smaller, T(1)), select(larger, x, y)};
}

// Sums over the tokens seen: numerator p e^o, denominator q e^o.
template <class T>
struct State {
  simd::Vec<T> p, q, o;

  static State load(const T* rows, int64_t stride, int64_t lanes) {
    using Vec = simd::Vec<T>;
    return {Vec::load(rows, lanes), Vec::load(rows + stride, lanes), Vec::load(rows + 2 * stride, lanes)};
  }
  void store(T* rows, int64_t stride, int64_t lanes) const {
    p.store(rows, lanes);
    q.store(rows + stride, lanes);
    o.store(rows + 2 * stride, lanes);
  }
  static State start(const WkvInputs<T>& in, const Block& k) {
    if (!in.initial) return {T(0), T(0), static_cast<T>(kLogOfNothing)};
    return load(in.initial + k.batch * 3 * in.shape.channels + k.channel, in.shape.channels, k.lanes);
  }
  void add(simd::Vec<T> w, simd::Vec<T> key, simd::Vec<T> value) {
    const Pair<T> share = scaled(w + o, key);
    p = share.x * p + share.y * value;
    q = share.x * q + share.y;
    o = share.top;
  }
};

// y_t = numerator / denominator, the denominator times e^-top, and the current token's part of it.
template <class T>
struct Output {
  simd::Vec<T> y, denominator, top, current;
};
template <class T>
Output<T> output_of(const State<T>& state, simd::Vec<T> bonus, simd::Vec<T> key, simd::Vec<T> value) {
  const Pair<T> share = scaled(state.o, bonus + key);
  const simd::Vec<T> denominator = share.x * state.q + share.y;
  return {(share.x * state.p + share.y * value) / denominator, denominator, share.top, share.y};
}

// Calls body(block) for all vectors of channels of all sequences of a piece.
template <class T, class Body>
void for_blocks(const WkvShape& s, int64_t piece, const Body& body) {
  const int64_t range = piece / s.channel_pieces(), part = piece % s.channel_pieces();
  const auto channel = [&](int64_t p) { return std::min(s.channels, s.blocks() * p / s.channel_pieces() * s.kBlock); };
  for (int64_t b = s.batch * range / s.sequence_pieces(); b < s.batch * (range + 1) / s.sequence_pieces(); ++b)
    for (int64_t c = channel(part); c < channel(part + 1); c += kLanes<T>)
      body(Block{b, c, std::min(kLanes<T>, channel(part + 1) - c)});
}

template <class T>
void advance(const WkvFwd<T>& a, const Block& k) {
  using Vec = simd::Vec<T>;
  const WkvShape& s = a.in.shape;
  const Vec w = Vec::load(a.in.w + k.channel, k.lanes), u = Vec::load(a.in.u + k.channel, k.lanes);
  State<T> state = State<T>::start(a.in, k);
  for (int64_t t = 0; t < s.length; ++t) {
    if (a.checkpoints && t % s.kChunk == 0)
      state.store(a.checkpoints + (k.batch * s.chunks() + t / s.kChunk) * 3 * s.channels + k.channel, s.channels,
                  k.lanes);
    const int64_t at = (k.batch * s.length + t) * s.channels + k.channel;
    const Vec key = Vec::load(a.in.k + at, k.lanes), value = Vec::load(a.in.v + at, k.lanes);
    output_of(state, u, key, value).y.store(a.y + at, k.lanes);
    state.add(w, key, value);
  }
  state.store(a.final + k.batch * 3 * s.channels + k.channel, s.channels, k.lanes);
}

// With numerator N_t and denominator Z_t of y_t, gN_t = dy_t / Z_t and gZ_t = -y_t gN_t, the cotangents of the sums
// after token t are R_t = gN_{t+1} + e^w R_{t+1} and S_t likewise of gZ:
//   dv_t = e^(u+k_t) gN_t + e^(k_t) R_t,   dk_t = e^(u+k_t) gN_t (v_t - y_t) + e^(k_t) (v_t R_t + S_t),
//   du = sum over t of e^(u+k_t) gN_t (v_t - y_t),   dw = sum over t of e^w (A_t R_t + B_t S_t),
// A_t and B_t being the sums before token t. R and S are kept times e^-top, gN times e^(top of Z): all exponents that
// are left are those of a token's weight in some y, and so not positive.
template <class T>
void retreat(const WkvBwd<T>& a, const Block& k, T* saved, T* sums) {
  using Vec = simd::Vec<T>;
  const WkvShape& s = a.in.shape;
  const Vec w = Vec::load(a.in.w + k.channel, k.lanes), u = Vec::load(a.in.u + k.channel, k.lanes);
  Vec dw = Vec::load(sums + k.channel, k.lanes), du = Vec::load(sums + s.channels + k.channel, k.lanes);
  Vec r(T(0)), z(T(0)), top(static_cast<T>(kLogOfNothing));
  const auto row = [&](int64_t t, int64_t i) { return saved + (t * a.kSaved + i) * kLanes<T>; };
  for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
    const int64_t tokens = std::min(s.kChunk, s.length - chunk * s.kChunk);
    const int64_t first = (k.batch * s.length + chunk * s.kChunk) * s.channels + k.channel;
    State<T> state = State<T>::load(a.checkpoints + (k.batch * s.chunks() + chunk) * 3 * s.channels + k.channel,
                                    s.channels, k.lanes);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = first + t * s.channels;
      const Vec key = Vec::load(a.in.k + at, k.lanes), value = Vec::load(a.in.v + at, k.lanes);
      const Output<T> out = output_of(state, u, key, value);
      state.store(row(t, 0), kLanes<T>, kLanes<T>);
      out.y.store(row(t, 3));
      (Vec::load(a.dy + at, k.lanes) / out.denominator).store(row(t, 4));
      out.top.store(row(t, 5));
      out.current.store(row(t, 6));
      state.add(w, key, value);
    }
    for (int64_t t = tokens - 1; t >= 0; --t) {
      const int64_t at = first + t * s.channels;
      const Vec key = Vec::load(a.in.k + at, k.lanes), value = Vec::load(a.in.v + at, k.lanes);
      const State<T> before = State<T>::load(row(t, 0), kLanes<T>, kLanes<T>);
      const Vec y = Vec::load(row(t, 3)), g = Vec::load(row(t, 4)), direct = Vec::load(row(t, 6)) * g;
      const Vec later = exp(key + top), dkey = direct * (value - y);
      (direct + later * r).store(a.dv + at, k.lanes);
      (dkey + later * (value * r + z)).store(a.dk + at, k.lanes);
      du += dkey;
      dw += exp(before.o + w + top) * (before.p * r + before.q * z);
      const Pair<T> share = scaled(-Vec::load(row(t, 5)), w + top);
      r = share.x * g + share.y * r;
      z = share.y * z - share.x * g * y;
      top = share.top;
    }
  }
  dw.store(sums + k.channel, k.lanes);
  du.store(sums + s.channels + k.channel, k.lanes);
}

}  // namespace

template <class T>
void run(Cpu cpu, const WkvFwd<T>& a) {
  const WkvShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  parallel_for(cpu, s.pieces(),
               [&](int64_t piece) { for_blocks<T>(s, piece, [&](const Block& k) { advance(a, k); }); });
}

template <class T>
void run(Cpu cpu, const WkvBwd<T>& a) {
  const WkvShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T* const sums = a.workspace + s.pieces() * a.piece_size();
  std::fill_n(sums, a.sums_size(s), T(0));
  parallel_for(cpu, s.pieces(), [&](int64_t piece) {
    T* const own = sums + piece / s.channel_pieces() * 2 * s.channels;
    for_blocks<T>(s, piece, [&](const Block& k) { retreat(a, k, a.workspace + piece * a.piece_size(), own); });
  });
  for (int64_t c = 0; c < s.channels; ++c) {
    a.dw[c] = a.du[c] = 0;
    for (int64_t range = 0; range < s.sequence_pieces(); ++range) {
      a.dw[c] += sums[range * 2 * s.channels + c];
      a.du[c] += sums[(range * 2 + 1) * s.channels + c];
    }
  }
}

template void run(Cpu, const WkvFwd<float>&);
template void run(Cpu, const WkvFwd<double>&);
template void run(Cpu, const WkvBwd<float>&);
template void run(Cpu, const WkvBwd<double>&);

}  // namespace margay::kernels
