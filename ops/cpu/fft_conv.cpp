#include "ops/fft_conv.h"

#include "ops/cpu/fft.h"

namespace margay::kernels {
namespace {

using fft::Complex;
using fft::Plan;
using fft::Points;
using simd::Vec;

template <class T>
constexpr int64_t kLanes = Vec<T>::size;

constexpr int64_t kAhead = 8;  // rows that are prefetched

/// The same vector of channels of two sequences, as the real and imaginary part of one; zeros behind the last row and
/// for a second sequence that is not there.
template <class T>
struct Pair {
  const T *first, *second;
  int64_t stride, rows, lanes;

  Complex<T> operator()(int64_t t) const {
    if (t >= rows) return {T(0), T(0)};
    const int64_t at = t * stride;
    __builtin_prefetch(first + at + kAhead * stride);  // one line of each row: no pattern that the hardware would see
    if (second == nullptr) return {Vec<T>::load(first + at, lanes), T(0)};
    __builtin_prefetch(second + at + kAhead * stride);
    return {Vec<T>::load(first + at, lanes), Vec<T>::load(second + at, lanes)};
  }
};

/// The way back: rows beyond the last one are dropped.
template <class T>
struct PairOut {
  T *first, *second;
  int64_t stride, rows, lanes;

  void operator()(int64_t t, Complex<T> value) const {
    if (t >= rows) return;
    const int64_t at = t * stride;
    __builtin_prefetch(first + at + kAhead * stride, 1);
    value.re.store(first + at, lanes);
    if (second == nullptr) return;
    __builtin_prefetch(second + at + kAhead * stride, 1);
    value.im.store(second + at, lanes);
  }
};

/// A part of the workspace.
template <class T>
struct Transform {
  Plan plan;
  const T* table;

  void forward(int pass, Points<T> x, int64_t at) const {
    fft::forward_pass<4>(
        plan.stride(pass), factors(pass), [&](int64_t i) { return x.load(at + i); }, x.from(at));
  }
  void backward(int pass, Points<T> x, int64_t at) const {
    fft::backward_pass<4>(plan.stride(pass), factors(pass), x.from(at),
                          [&](int64_t i, Complex<T> value) { x.store(at + i, value); });
  }
  /// Calls body.template operator()<R>(first point of a leaf) for the leaves of a range.
  template <class Body>
  void for_leaves(int64_t begin, int64_t end, const Body& body) const {
    if (plan.radix[static_cast<size_t>(plan.passes - 1)] == 4) {
      for (; begin < end; begin += 4) body.template operator()<4>(begin);
    } else {
      for (; begin < end; begin += 8) body.template operator()<8>(begin);
    }
  }
  /// The passes of all blocks of pass 0, between its own.
  template <class Forward, class Backward, class Leaves>
  void descend(const Forward& to, const Backward& fro, const Leaves& leaves) const {
    for (int64_t at = 0; at < plan.size(); at += plan.stride(0)) fft::descend(plan, 1, at, to, fro, leaves);
  }

 private:
  const T* factors(int pass) const { return table + plan.twiddles[static_cast<size_t>(pass)]; }
};

template <size_t R, class T>
std::array<Complex<T>, R> load_leaf(Points<T> x, int64_t at) {
  std::array<Complex<T>, R> leaf;
#pragma GCC unroll 8
  for (size_t q = 0; q < R; ++q) leaf[q] = x.load(at + static_cast<int64_t>(q));
  return leaf;
}
template <size_t R, class T>
void store_leaf(const std::array<Complex<T>, R>& leaf, Points<T> x, int64_t at) {
#pragma GCC unroll 8
  for (size_t q = 0; q < R; ++q) x.store(at + static_cast<int64_t>(q), leaf[q]);
}
constexpr auto kNothing = [](int, int64_t) {};

/// The spectrum of one vector of filters with the skip in tap 0, divided by n for the way back.
template <class T>
void make_spectrum(const Transform<T>& transform, const auto& a, int64_t channel, Points<T> out) {
  const int64_t lanes = std::min(kLanes<T>, a.shape.C - channel);
  const T* const kernel = a.kernel + channel * a.kernel_channel;
  const auto tap = [&](int64_t w) -> Complex<T> {
    if (w >= a.shape.K) return {T(0), T(0)};
    Vec<T> value = T(0);
    if (a.kernel_channel == 1) {
      value = Vec<T>::load(kernel + w * a.kernel_tap, lanes);
    } else {
      for (int lane = 0; lane < lanes; ++lane) value.v[lane] = kernel[lane * a.kernel_channel + w * a.kernel_tap];
    }
    if (w == 0 && a.D) value += Vec<T>::load(a.D + channel, lanes);
    return {value, T(0)};
  };
  first_pass(transform.plan, transform.table, tap, out);
  const Vec<T> scale = T(1) / static_cast<T>(a.shape.n);
  transform.descend([&](int pass, int64_t at) { transform.forward(pass, out, at); }, kNothing,
                    [&](int64_t begin, int64_t end) {
                      transform.for_leaves(begin, end, [&]<size_t R>(int64_t at) {
                        auto leaf = load_leaf<R>(out, at);
                        fft::butterfly<false>(leaf);
                        for (Complex<T>& value : leaf) value = value * scale;
                        store_leaf(leaf, out, at);
                      });
                    });
}

/// The workspace in its parts.
template <class T>
struct Parts {
  FftConvLayout<T> layout;
  T *table, *spectra, *pieces;

  Parts(const FftConvShape& shape, T* workspace)
      : layout{shape},
        table(workspace),
        spectra(table + layout.table()),
        pieces(spectra + layout.vectors() * layout.block()) {}
  Points<T> spectrum(int64_t vector) const { return {spectra + vector * layout.block()}; }
  /// Block `i` of every piece.
  Points<T> block(int64_t i, int64_t piece) const { return {pieces + (i * layout.pieces() + piece) * layout.block()}; }
  /// Calls body(piece, first channel, lanes, begin, end) for every piece: pairs begin ... end - 1 of some channels.
  template <class Body>
  void for_pieces(Cpu cpu, const Body& body) const {
    parallel_for(cpu, layout.pieces(), [&](int64_t piece) {
      const int64_t channel = piece / layout.chunks() * kLanes<T>, chunk = piece % layout.chunks();
      const int64_t pairs = layout.s.pairs(), chunks = layout.chunks();
      body(piece, channel, std::min(kLanes<T>, layout.s.C - channel), chunk * pairs / chunks,
           (chunk + 1) * pairs / chunks);
    });
  }
};

template <class T>
Pair<T> pair_of(const FftConvShape& s, const T* data, int64_t batch, int64_t row, int64_t pair, int64_t lanes) {
  const T* const first = data + 2 * pair * batch;
  return {first, 2 * pair + 1 < s.B ? first + batch : nullptr, row, s.L, lanes};
}
template <class T>
PairOut<T> pair_out(const FftConvShape& s, T* data, int64_t pair, int64_t lanes) {
  T* const first = data + 2 * pair * s.L * s.C;
  return {first, 2 * pair + 1 < s.B ? first + s.L * s.C : nullptr, s.C, s.L, lanes};
}

/// One pair of sequences through the filters: a filter is real, so it acts on real and imaginary part by itself.
template <class T>
void filter(const Transform<T>& transform, Points<T> x, Points<T> spectrum, const Pair<T>& in, const PairOut<T>& out) {
  fft::first_pass(transform.plan, transform.table, in, x);
  transform.descend([&](int pass, int64_t at) { transform.forward(pass, x, at); },
                    [&](int pass, int64_t at) { transform.backward(pass, x, at); },
                    [&](int64_t begin, int64_t end) {
                      transform.for_leaves(begin, end, [&]<size_t R>(int64_t at) {
                        auto leaf = load_leaf<R>(x, at);
                        fft::butterfly<false>(leaf);
#pragma GCC unroll 8
                        for (size_t q = 0; q < R; ++q) leaf[q] = leaf[q] * spectrum.load(at + static_cast<int64_t>(q));
                        fft::butterfly<true>(leaf);
                        store_leaf(leaf, x, at);
                      });
                    });
  fft::final_pass(transform.plan, transform.table, x, out);
}

/// The blocks of one piece of the backward pass.
template <class T>
struct Gradients {
  Points<T> u, g, product, spectrum;
  bool want_kernel, want_u;
};

// With u = u1 + i u2 and g = dy1 + i dy2, and capitals for spectra:
// - y = k * u, so du = k correlated with g, whose spectrum is conj(K) G: real and imaginary part each for itself.
// - dk[w] = sum over t of dy1[t] u1[t-w] + dy2[t] u2[t-w]. The sequence with spectrum G conj(U) is g correlated with
//   conj(u), and its real part is just that sum. So the sum over all pairs is gathered as a spectrum, and goes back
//   once.
template <class T>
void pull_back(const Transform<T>& transform, const Gradients<T>& x, const Pair<T>& u, const Pair<T>& g,
               const PairOut<T>& du) {
  const auto& [plan, table] = transform;
  if (x.want_kernel) fft::first_pass(plan, table, u, x.u);
  fft::first_pass(plan, table, g, x.g);
  const auto forward = [&](int pass, int64_t at) {
    if (x.want_kernel) transform.forward(pass, x.u, at);
    transform.forward(pass, x.g, at);
  };
  const auto backward = [&](int pass, int64_t at) {
    if (x.want_u) transform.backward(pass, x.g, at);
  };
  const auto leaf = [&]<size_t R>(int64_t at) {
    auto cotangent = load_leaf<R>(x.g, at);
    fft::butterfly<false>(cotangent);
    if (x.want_kernel) {
      auto signal = load_leaf<R>(x.u, at);
      fft::butterfly<false>(signal);
#pragma GCC unroll 8
      for (size_t q = 0; q < R; ++q) {
        const int64_t point = at + static_cast<int64_t>(q);
        x.product.store(point, x.product.load(point) + times_conj(cotangent[q], signal[q]));
      }
    }
    if (!x.want_u) return;
#pragma GCC unroll 8
    for (size_t q = 0; q < R; ++q)
      cotangent[q] = times_conj(cotangent[q], x.spectrum.load(at + static_cast<int64_t>(q)));
    fft::butterfly<true>(cotangent);
    store_leaf(cotangent, x.g, at);
  };
  transform.descend(forward, backward, [&](int64_t begin, int64_t end) { transform.for_leaves(begin, end, leaf); });
  if (x.want_u) fft::final_pass(plan, table, x.g, du);
}

/// The sum of the products of all chunks of one vector of channels, back in time: the gradients of its filters.
template <class T>
void finish_kernel(const Transform<T>& transform, const Parts<T>& parts, const FftConvBwd<T>& a, int64_t vector) {
  const int64_t chunks = parts.layout.chunks(), channel = vector * kLanes<T>;
  const int64_t lanes = std::min(kLanes<T>, a.shape.C - channel);
  const Points<T> sum = parts.block(2, vector * chunks);
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < a.shape.n; ++i) sum.store(i, sum.load(i) + parts.block(2, vector * chunks + chunk).load(i));
  transform.descend(
      kNothing, [&](int pass, int64_t at) { transform.backward(pass, sum, at); },
      [&](int64_t begin, int64_t end) {
        transform.for_leaves(begin, end, [&]<size_t R>(int64_t at) {
          auto leaf = load_leaf<R>(sum, at);
          fft::butterfly<true>(leaf);
          store_leaf(leaf, sum, at);
        });
      });
  const Vec<T> scale = T(1) / static_cast<T>(a.shape.n);
  fft::final_pass(transform.plan, transform.table, sum, [&](int64_t w, Complex<T> value) {
    if (w >= a.shape.K) return;
    const Vec<T> gradient = value.re * scale;
    if (w == 0 && a.dD) gradient.store(a.dD + channel, lanes);
    if (!a.dkernel) return;
    T* const out = a.dkernel + channel * a.dkernel_channel + w * a.dkernel_tap;
    if (a.dkernel_channel == 1) {
      gradient.store(out, lanes);
    } else {
      for (int lane = 0; lane < lanes; ++lane) out[lane * a.dkernel_channel] = gradient.v[lane];
    }
  });
}

template <class T>
Transform<T> prepare(Cpu cpu, const Parts<T>& parts, const auto& a) {
  const Transform<T> transform{Plan(a.shape.n), parts.table};
  fill_twiddles(transform.plan, parts.table);
  parallel_for(cpu, parts.layout.vectors(),
               [&](int64_t vector) { make_spectrum(transform, a, vector * kLanes<T>, parts.spectrum(vector)); });
  return transform;
}

}  // namespace

int64_t fft_conv_size(int64_t L, int64_t K) { return fft::good_size(L + K - 1); }

template <class T>
void run(Cpu cpu, const FftConvFwd<T>& a) {
  const Parts<T> parts(a.shape, a.workspace);
  const Transform<T> transform = prepare(cpu, parts, a);
  parts.for_pieces(cpu, [&](int64_t piece, int64_t channel, int64_t lanes, int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair)
      filter(transform, parts.block(0, piece), parts.spectrum(channel / kLanes<T>),
             pair_of(a.shape, a.u + channel, a.u_batch, a.u_row, pair, lanes),
             pair_out(a.shape, a.y + channel, pair, lanes));
  });
}

template <class T>
void run(Cpu cpu, const FftConvBwd<T>& a) {
  const FftConvShape& s = a.shape;
  const Parts<T> parts(s, a.workspace);
  const Transform<T> transform = prepare(cpu, parts, a);
  const bool want_kernel = a.dkernel || a.dD;
  parts.for_pieces(cpu, [&](int64_t piece, int64_t channel, int64_t lanes, int64_t begin, int64_t end) {
    const Gradients<T> blocks{parts.block(0, piece), parts.block(1, piece),
                              parts.block(2, piece), parts.spectrum(channel / kLanes<T>),
                              want_kernel,           a.du != nullptr};
    if (want_kernel) std::fill_n(blocks.product.data, parts.layout.block(), T(0));
    for (int64_t pair = begin; pair < end; ++pair)
      pull_back(transform, blocks, pair_of(s, a.u + channel, a.u_batch, a.u_row, pair, lanes),
                pair_of(s, a.dy + channel, a.dy_batch, a.dy_row, pair, lanes),
                a.du ? pair_out(s, a.du + channel, pair, lanes) : PairOut<T>{});
  });
  if (want_kernel)
    parallel_for(cpu, parts.layout.vectors(), [&](int64_t vector) { finish_kernel(transform, parts, a, vector); });
}

template void run(Cpu, const FftConvFwd<float>&);
template void run(Cpu, const FftConvFwd<double>&);
template void run(Cpu, const FftConvBwd<float>&);
template void run(Cpu, const FftConvBwd<double>&);

}  // namespace margay::kernels
