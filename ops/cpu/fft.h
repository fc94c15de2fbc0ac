#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <complex>

#include "ops/cpu/simd.h"

// Complex Fourier transforms, one per vector lane, in mixed radix: forward by decimation in frequency, which leaves the
// frequencies in an order of its own, backward by decimation in time from that order. Pointwise products need no other.

namespace margay::fft {

/// Complex numbers, one per lane.
template <class T>
struct Complex {
  simd::Vec<T> re, im;

  friend Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
  friend Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
  friend Complex operator*(Complex a, simd::Vec<T> s) { return {a.re * s, a.im * s}; }
  friend Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
};
/// a b for finite numbers; the operator of std::complex spends most of its time on infinities.
inline std::complex<double> product(std::complex<double> a, std::complex<double> b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

/// a times the conjugate of b.
template <class T>
Complex<T> times_conj(Complex<T> a, Complex<T> b) {
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}
/// a times -i in the forward transform, times i in the backward one.
template <bool backward, class T>
Complex<T> turn(Complex<T> a) {
  return backward ? Complex<T>{-a.im, a.re} : Complex<T>{a.im, -a.re};
}

/// A run of complex vectors in memory: the real parts of all lanes, then the imaginary ones, point by point.
template <class T>
struct Points {
  static constexpr int64_t kStride = 2 * simd::Vec<T>::size;
  T* data;

  Complex<T> load(int64_t i) const {
    return {simd::Vec<T>::load(data + i * kStride), simd::Vec<T>::load(data + i * kStride + kStride / 2)};
  }
  void store(int64_t i, Complex<T> value) const {
    value.re.store(data + i * kStride);
    value.im.store(data + i * kStride + kStride / 2);
  }
  Points from(int64_t i) const { return {data + i * kStride}; }
};

/// The smallest size of at least `at_least` that has a plan: 12, 16, 20, 24, 32 ... {3, 4, 5} 2^k.
inline int64_t good_size(int64_t at_least) {
  int64_t best = 16;
  while (best < at_least) best *= 2;
  for (const int64_t odd : {3, 5}) {
    int64_t size = 4 * odd;
    while (size < at_least) size *= 2;
    best = std::min(best, size);
  }
  return best;
}

/// The passes of a transform of a good size. Pass 0 has radix 3, 4 or 5, the last one (the leaves) 4 or 8 without
/// twiddles, all others 4. Pass p cuts blocks of length[p] into radix[p] blocks.
struct Plan {
  static constexpr int kMostPasses = 32;
  int passes = 0;
  std::array<int, kMostPasses> radix{};
  std::array<int64_t, kMostPasses> length{};
  std::array<int64_t, kMostPasses> twiddles{};  // where the factors of a pass begin

  explicit Plan(int64_t size) {
    int64_t rest = size, at = 0;
    const auto add = [&](int r) {
      radix[static_cast<size_t>(passes)] = r;
      length[static_cast<size_t>(passes)] = rest;
      twiddles[static_cast<size_t>(passes++)] = at;
      at += 2 * (r - 1) * (rest / r);
      rest /= r;
    };
    if (rest % 3 == 0) add(3);
    if (rest % 5 == 0) add(5);
    while (rest > 8) add(4);
    add(static_cast<int>(rest));
  }
  int64_t size() const { return length[0]; }
  int64_t stride(int pass) const { return length[static_cast<size_t>(pass)] / radix[static_cast<size_t>(pass)]; }
};

/// Calls use(j, e^(2 pi i j / circle)) for j < count. From f64 products of few sines.
template <class Use>
void for_turns(int64_t count, int64_t circle, const Use& use) {
  constexpr double two_pi = 6.283185307179586476925286766559;
  constexpr int64_t fine = 64;
  const auto unit = [&](int64_t j) {
    return std::polar(1.0, two_pi * static_cast<double>(j) / static_cast<double>(circle));
  };
  std::array<std::complex<double>, fine> small;
  for (int64_t j = 0; j < fine; ++j) small[static_cast<size_t>(j)] = unit(j);
  for (int64_t begin = 0; begin < count; begin += fine) {
    const std::complex<double> large = unit(begin);
    for (int64_t i = 0; i < std::min(fine, count - begin); ++i)
      use(begin + i, product(large, small[static_cast<size_t>(i)]));
  }
}

/// table[2 j], table[2 j + 1] = e^(2 pi i j / circle), j < count.
template <class T>
void fill_turns(int64_t count, int64_t circle, T* table) {
  for_turns(count, circle, [&](int64_t j, std::complex<double> turn) {
    table[2 * j] = static_cast<T>(turn.real());
    table[2 * j + 1] = static_cast<T>(turn.imag());
  });
}

/// Fills the table of a plan, which has less than 2 size elements: for every pass but the leaves, for j < stride,
/// e^(-2 pi i j q / length), q = 1 ... r - 1.
template <class T>
void fill_twiddles(const Plan& plan, T* table) {
  for (int pass = 0; pass + 1 < plan.passes; ++pass) {
    const auto p = static_cast<size_t>(pass);
    T* out = table + plan.twiddles[p];
    for_turns(plan.stride(pass), plan.length[p], [&](int64_t, std::complex<double> turn) {
      const std::complex<double> factor = std::conj(turn);
      std::complex<double> power = factor;
      for (int q = 1; q < plan.radix[p]; ++q, power = product(power, factor)) {
        *out++ = static_cast<T>(power.real());
        *out++ = static_cast<T>(power.imag());
      }
    });
  }
}

// Discrete Fourier transforms of R points in registers; backward with conjugate factors, not scaled.

template <bool backward, class T>
[[gnu::always_inline]] inline void butterfly(std::array<Complex<T>, 3>& x) {
  const Complex<T> sum = x[1] + x[2], middle = x[0] - sum * T(0.5);
  const Complex<T> side = turn<backward>((x[1] - x[2]) * T(0.86602540378443864676));
  x = {x[0] + sum, middle + side, middle - side};
}

template <bool backward, class T>
[[gnu::always_inline]] inline void butterfly(std::array<Complex<T>, 4>& x) {
  const Complex<T> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turn<backward>(x[1] - x[3]);
  x = {a + c, b + d, a - c, b - d};
}

template <bool backward, class T>
[[gnu::always_inline]] inline void butterfly(std::array<Complex<T>, 5>& x) {
  constexpr T cos1 = T(0.30901699437494742410), cos2 = T(-0.80901699437494742410);
  constexpr T sin1 = T(0.95105651629515357212), sin2 = T(0.58778525229247312917);
  const Complex<T> a = x[1] + x[4], b = x[2] + x[3], c = x[1] - x[4], d = x[2] - x[3];
  const Complex<T> near = x[0] + a * cos1 + b * cos2, far = x[0] + a * cos2 + b * cos1;
  const Complex<T> near_side = turn<backward>(c * sin1 + d * sin2), far_side = turn<backward>(c * sin2 - d * sin1);
  x = {x[0] + a + b, near + near_side, far + far_side, far - far_side, near - near_side};
}

template <bool backward, class T>
[[gnu::always_inline]] inline void butterfly(std::array<Complex<T>, 8>& x) {
  constexpr T half_root = T(0.70710678118654752440);
  std::array<Complex<T>, 4> even{x[0], x[2], x[4], x[6]}, odd{x[1], x[3], x[5], x[7]};
  butterfly<backward>(even);
  butterfly<backward>(odd);
  odd[1] = (odd[1] + turn<backward>(odd[1])) * half_root;
  odd[2] = turn<backward>(odd[2]);
  odd[3] = (turn<backward>(odd[3]) - odd[3]) * half_root;
  x = {even[0] + odd[0], even[1] + odd[1], even[2] + odd[2], even[3] + odd[3],
       even[0] - odd[0], even[1] - odd[1], even[2] - odd[2], even[3] - odd[3]};
}

/// One forward pass over a block of R * stride points: source(i) gives point i; into `out`.
template <size_t R, class T, class Source>
void forward_pass(int64_t stride, const T* twiddles, const Source& source, Points<T> out) {
  for (int64_t j = 0; j < stride; ++j) {
    std::array<Complex<T>, R> x;
#pragma GCC unroll 8
    for (size_t q = 0; q < R; ++q) x[q] = source(j + static_cast<int64_t>(q) * stride);
    butterfly<false>(x);
    out.store(j, x[0]);
#pragma GCC unroll 8
    for (size_t q = 1; q < R; ++q, twiddles += 2)
      out.store(j + static_cast<int64_t>(q) * stride, x[q] * Complex<T>{twiddles[0], twiddles[1]});
  }
}

/// Undoes forward_pass up to a factor R: sink(i, value) takes point i.
template <size_t R, class T, class Sink>
void backward_pass(int64_t stride, const T* twiddles, Points<T> in, const Sink& sink) {
  for (int64_t j = 0; j < stride; ++j) {
    std::array<Complex<T>, R> x;
    x[0] = in.load(j);
#pragma GCC unroll 8
    for (size_t q = 1; q < R; ++q, twiddles += 2)
      x[q] = times_conj(in.load(j + static_cast<int64_t>(q) * stride), Complex<T>{twiddles[0], twiddles[1]});
    butterfly<true>(x);
#pragma GCC unroll 8
    for (size_t q = 0; q < R; ++q) sink(j + static_cast<int64_t>(q) * stride, x[q]);
  }
}

/// forward_pass and backward_pass of pass 0, whose radix is 3, 4 or 5.
template <class T, class Source>
void first_pass(const Plan& plan, const T* table, const Source& source, Points<T> out) {
  const int64_t stride = plan.stride(0);
  if (plan.radix[0] == 3) return forward_pass<3>(stride, table, source, out);
  if (plan.radix[0] == 4) return forward_pass<4>(stride, table, source, out);
  return forward_pass<5>(stride, table, source, out);
}
template <class T, class Sink>
void final_pass(const Plan& plan, const T* table, Points<T> in, const Sink& sink) {
  const int64_t stride = plan.stride(0);
  if (plan.radix[0] == 3) return backward_pass<3>(stride, table, in, sink);
  if (plan.radix[0] == 4) return backward_pass<4>(stride, table, in, sink);
  return backward_pass<5>(stride, table, in, sink);
}

/// Forward and backward passes in place, between which `leaves(begin, end)` sees the points begin ... end - 1 of whole
/// leaves and makes the last forward and the first backward transform of them. Depth first: once a block fits a cache
/// everything is done with it. `forward` and `backward` take the pass and the first point of a block.
template <class Forward, class Backward, class Leaves>
void descend(const Plan& plan, int pass, int64_t at, const Forward& forward, const Backward& backward,
             const Leaves& leaves) {
  if (pass + 1 == plan.passes) return leaves(at, at + plan.length[static_cast<size_t>(pass)]);
  forward(pass, at);
  const int64_t stride = plan.stride(pass);
  if (pass + 2 == plan.passes) {
    leaves(at, at + plan.length[static_cast<size_t>(pass)]);
  } else {
    for (int q = 0; q < plan.radix[static_cast<size_t>(pass)]; ++q)
      descend(plan, pass + 1, at + q * stride, forward, backward, leaves);
  }
  backward(pass, at);
}

}  // namespace margay::fft
