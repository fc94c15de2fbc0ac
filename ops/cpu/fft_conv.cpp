#include "ops/fft_conv.h"

#include <bit>

#include "engine/parallel.h"
#include "ops/cpu/fft.h"

namespace margay::kernels {
namespace {

using fft::Complex;
using fft::Plan;
using fft::Points;
using simd::Vec;

template <class T>
constexpr int64_t kLanes = Vec<T>::size;

constexpr int64_t kAhead = 8;  // rows that are prefetched: one line of each is no pattern that the hardware sees

// Real sequences of up to 2n rows are convolved by complex transforms of n points ("right-angle convolution",
// Crandall & Fagin 1994, Mathematics of Computation 62, section 5). Read as polynomials, let them take values at the n
// points z with z^n = i: that is a transform of (x[j] + i x[j+n]) e^(i pi j / 2n). Products of values belong to
// products of polynomials with z^2n = -1, so a convolution of less than 2n rows comes out whole, and since the points
// have size 1, x(1/z) = conj(x(z)): correlations are products with conjugates, whose rows -1, -2 ... come out behind
// the others.

/// One vector of channels of a sequence as points of a transform; zeros behind its last row.
template <class T>
struct Sequence {
  const T *data, *weights;
  int64_t stride, rows, lanes, n;

  Complex<T> operator()(int64_t j) const {
    if (j >= rows) return {T(0), T(0)};
    const T* const row = data + j * stride;
    const Complex<T> weight{weights[2 * j], weights[2 * j + 1]};
    __builtin_prefetch(row + kAhead * stride);
    const Vec<T> low = Vec<T>::load(row, lanes);
    if (j + n >= rows) return weight * low;
    return Complex<T>{low, Vec<T>::load(row + n * stride, lanes)} * weight;
  }
};

/// The way back: rows beyond the last one are dropped.
template <class T>
struct SequenceOut {
  T* data;
  const T* weights;
  int64_t stride, rows, lanes, n;

  void operator()(int64_t j, Complex<T> value) const {
    if (j >= rows) return;
    T* const row = data + j * stride;
    value = times_conj(value, Complex<T>{weights[2 * j], weights[2 * j + 1]});
    __builtin_prefetch(row + kAhead * stride, 1);
    value.re.store(row, lanes);
    if (j + n < rows) value.im.store(row + n * stride, lanes);
  }
};

/// A plan with its tables: twiddles, and the weights e^(i pi j / 2n).
template <class T>
struct Transform {
  Plan plan;
  const T *table, *weights;

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

/// The spectrum of one vector of filters with the skip in tap 0, divided by n for the way back. They have at most n
/// taps, because they have at most as many as the sequences have rows.
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
    return Complex<T>{transform.weights[2 * w], transform.weights[2 * w + 1]} * value;
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
  T *table, *weights, *spectra, *pieces;

  Parts(const FftConvShape& shape, T* workspace)
      : layout{shape},
        table(workspace),
        weights(table + layout.table()),
        spectra(weights + layout.table()),
        pieces(spectra + layout.vectors() * layout.block()) {}
  Points<T> spectrum(int64_t vector) const { return {spectra + vector * layout.block()}; }
  /// Block `i` of a piece.
  Points<T> scratch(int64_t i, int64_t piece) const {
    return {pieces + (i * layout.pieces() + piece) * layout.block()};
  }
  /// The sum over a chunk of sequences.
  Points<T> sum(int64_t vector, int64_t chunk) const {
    return {pieces + (2 * layout.pieces() + vector * layout.chunks() + chunk) * layout.block()};
  }
  /// Calls body(piece, chunk, begin, end) for every piece: some sequences and the vectors begin ... end - 1.
  template <class Body>
  void for_pieces(Cpu cpu, const Body& body) const {
    parallel_for(cpu, layout.pieces(), [&](int64_t piece) {
      const int64_t begin = piece / layout.chunks() * layout.vectors_per_group();
      body(piece, piece % layout.chunks(), begin, std::min(layout.vectors(), begin + layout.vectors_per_group()));
    });
  }
  /// Calls body(b, vector) for the sequences of a chunk and some vectors.
  template <class Body>
  void for_sequences(int64_t chunk, int64_t begin, int64_t end, const Body& body) const {
    const int64_t B = layout.s.B, chunks = layout.chunks();
    for (int64_t b = chunk * B / chunks; b < (chunk + 1) * B / chunks; ++b)
      for (int64_t vector = begin; vector < end; ++vector) body(b, vector);
  }
  /// A vector of channels of sequence b.
  Sequence<T> rows(const T* data, int64_t batch, int64_t row, int64_t b, int64_t vector) const {
    const FftConvShape& s = layout.s;
    const int64_t channel = vector * kLanes<T>;
    return {data + b * batch + channel, weights, row, s.L, std::min(kLanes<T>, s.C - channel), s.n};
  }
  SequenceOut<T> rows_out(T* data, int64_t b, int64_t vector) const {
    const FftConvShape& s = layout.s;
    const int64_t channel = vector * kLanes<T>;
    return {data + b * s.L * s.C + channel, weights, s.C, s.L, std::min(kLanes<T>, s.C - channel), s.n};
  }
};

/// One sequence through the filters.
template <class T>
void filter(const Transform<T>& transform, Points<T> x, Points<T> spectrum, const Sequence<T>& in,
            const SequenceOut<T>& out) {
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

// y = k * u, so du is dy correlated with k, and dk is dy correlated with u, summed over the sequences: with capitals
// for spectra, dU = G conj(K) and dK = sum of G conj(U). The sum is gathered as a spectrum, and goes back once.
template <class T>
void pull_back(const Transform<T>& transform, const Gradients<T>& x, const Sequence<T>& u, const Sequence<T>& g,
               const SequenceOut<T>& du) {
  const auto& [plan, table, weights] = transform;
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
  const Points<T> sum = parts.sum(vector, 0);
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < a.shape.n; ++i) sum.store(i, sum.load(i) + parts.sum(vector, chunk).load(i));
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
    const Complex<T> weight{transform.weights[2 * w], transform.weights[2 * w + 1]};
    const Vec<T> gradient = times_conj(value, weight).re * scale;
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
  const Transform<T> transform{Plan(a.shape.n), parts.table, parts.weights};
  fft::fill_twiddles(transform.plan, parts.table);
  fft::fill_turns(a.shape.n, 4 * a.shape.n, parts.weights);
  parallel_for(cpu, parts.layout.vectors(),
               [&](int64_t vector) { make_spectrum(transform, a, vector * kLanes<T>, parts.spectrum(vector)); });
  return transform;
}

}  // namespace

int64_t fft_conv_size(DeviceType device, int64_t L, int64_t K) {
  const int64_t needed = std::max<int64_t>(8, (L + K) / 2);
  if (device == DeviceType::cuda) return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(needed)));
  return fft::good_size(needed);
}

template <class T>
void run(Cpu cpu, const FftConvFwd<T>& a) {
  const Parts<T> parts(a.shape, a.workspace);
  const Transform<T> transform = prepare(cpu, parts, a);
  parts.for_pieces(cpu, [&](int64_t piece, int64_t chunk, int64_t begin, int64_t end) {
    parts.for_sequences(chunk, begin, end, [&](int64_t b, int64_t vector) {
      filter(transform, parts.scratch(0, piece), parts.spectrum(vector), parts.rows(a.u, a.u_batch, a.u_row, b, vector),
             parts.rows_out(a.y, b, vector));
    });
  });
}

template <class T>
void run(Cpu cpu, const FftConvBwd<T>& a) {
  const Parts<T> parts(a.shape, a.workspace);
  const Transform<T> transform = prepare(cpu, parts, a);
  const bool want_kernel = a.dkernel || a.dD;
  parts.for_pieces(cpu, [&](int64_t piece, int64_t chunk, int64_t begin, int64_t end) {
    if (want_kernel)
      for (int64_t vector = begin; vector < end; ++vector)
        std::fill_n(parts.sum(vector, chunk).data, parts.layout.block(), T(0));
    parts.for_sequences(chunk, begin, end, [&](int64_t b, int64_t vector) {
      const Gradients<T> blocks{parts.scratch(0, piece),
                                parts.scratch(1, piece),
                                parts.sum(vector, chunk),
                                parts.spectrum(vector),
                                want_kernel,
                                a.du != nullptr};
      pull_back(transform, blocks, parts.rows(a.u, a.u_batch, a.u_row, b, vector),
                parts.rows(a.dy, a.dy_batch, a.dy_row, b, vector),
                a.du ? parts.rows_out(a.du, b, vector) : SequenceOut<T>{});
    });
  });
  if (want_kernel)
    parallel_for(cpu, parts.layout.vectors(), [&](int64_t vector) { finish_kernel(transform, parts, a, vector); });
}

template <class T>
int64_t FftConvLayout<T>::lanes() {
  return simd::kVectorBytes / static_cast<int64_t>(sizeof(T));
}

template struct FftConvLayout<float>;
template struct FftConvLayout<double>;
template void run(Cpu, const FftConvFwd<float>&);
template void run(Cpu, const FftConvFwd<double>&);
template void run(Cpu, const FftConvBwd<float>&);
template void run(Cpu, const FftConvBwd<double>&);

}  // namespace margay::kernels
