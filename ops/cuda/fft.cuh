#pragma once
#include <cstdint>

#include "engine/host_device.h"

// Complex Fourier transforms of 2^k points on a GPU: forward by decimation in frequency, in place, which leaves the
// frequencies in an order of its own, backward by decimation in time from that order. Pointwise products need no other.

namespace margay::kernels::fft {

template <class A>
struct alignas(2 * sizeof(A)) Complex {
  A re, im;

  friend HOST_DEVICE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
  friend HOST_DEVICE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
  friend HOST_DEVICE Complex operator*(Complex a, A s) { return {a.re * s, a.im * s}; }
  friend HOST_DEVICE Complex operator*(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
};

/// a times the conjugate of b.
template <class A>
HOST_DEVICE Complex<A> times_conj(Complex<A> a, Complex<A> b) {
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

/// a times -i in the forward transform, times i in the backward one.
template <bool backward, class A>
HOST_DEVICE Complex<A> turn(Complex<A> a) {
  return backward ? Complex<A>{-a.im, a.re} : Complex<A>{a.im, -a.re};
}

/// The 4n-th roots of unity, n a power of two, from the first quarter of their circle.
template <class A>
struct Roots {
  const Complex<A>* quarter;  // [n]
  int64_t n;

  /// e^(2 pi i k / 4n), 0 <= k < 4n.
  HOST_DEVICE Complex<A> operator()(int64_t k) const {
    Complex<A> root = quarter[k & (n - 1)];
    if (k & n) root = {-root.im, root.re};
    return k & 2 * n ? Complex<A>{-root.re, -root.im} : root;
  }
};

// Transforms of 2, 4 or 8 points in registers; backward with conjugate factors, not scaled.

template <bool backward, class A>
HOST_DEVICE void butterfly(Complex<A> (&x)[2]) {
  const Complex<A> sum = x[0] + x[1];
  x[1] = x[0] - x[1];
  x[0] = sum;
}

template <bool backward, class A>
HOST_DEVICE void butterfly(Complex<A> (&x)[4]) {
  const Complex<A> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turn<backward>(x[1] - x[3]);
  x[0] = a + c;
  x[1] = b + d;
  x[2] = a - c;
  x[3] = b - d;
}

template <bool backward, class A>
HOST_DEVICE void butterfly(Complex<A> (&x)[8]) {
  Complex<A> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
  butterfly<backward>(even);
  butterfly<backward>(odd);
  const A half(0.70710678118654752440);  // of an eighth of a circle: sine and cosine
  odd[1] = (odd[1] + turn<backward>(odd[1])) * half;
  odd[2] = turn<backward>(odd[2]);
  odd[3] = (turn<backward>(odd[3]) - odd[3]) * half;
  for (int q = 0; q < 4; ++q) {
    x[q] = even[q] + odd[q];
    x[q + 4] = even[q] - odd[q];
  }
}

/// Butterfly `i` of a pass over blocks of 2^log_length points, which it cuts into R blocks, or joins from them. `load`
/// and `store` take the place of a point.
template <int R, bool backward, class A, class Load, class Store>
HOST_DEVICE void pass(int64_t i, int log_length, Roots<A> roots, const Load& load, const Store& store) {
  constexpr int log_radix = R == 8 ? 3 : R == 4 ? 2 : 1;
  const int log_stride = log_length - log_radix;
  const int64_t j = i & ((int64_t{1} << log_stride) - 1), first = (i - j) * R + j;
  const int64_t angle = (j * 4 * roots.n) >> log_length;
  Complex<A> x[R];
  for (int q = 0; q < R; ++q) x[q] = load(first + (int64_t{q} << log_stride));
  if (!backward) butterfly<backward>(x);
  for (int q = 1; q < R; ++q) x[q] = backward ? x[q] * roots(q * angle) : times_conj(x[q], roots(q * angle));
  if (backward) butterfly<backward>(x);
  for (int q = 0; q < R; ++q) store(first + (int64_t{q} << log_stride), x[q]);
}

}  // namespace margay::kernels::fft
