#pragma once
#include <algorithm>
#include <array>

#include "ops/cpu/simd.h"

// Mathematical functions of f32 vectors beyond exp: polynomials (minimax fits made for this file) with the stated error
// against the exact value, over all of f32 and on any instruction set; an ulp is the spacing of f32 at the result.

namespace margay::simd {

template <class T>
typename Mask<T>::Native to_bits(Vec<T> x) {
  typename Mask<T>::Native bits;
  std::memcpy(&bits, &x.v, sizeof(bits));
  return bits;
}
inline Vec<float> from_bits(Mask<float>::Native bits) {
  Vec<float> x;
  std::memcpy(&x.v, &bits, sizeof(bits));
  return x;
}
/// |magnitude| with the sign of `sign`.
inline Vec<float> copysign(Vec<float> magnitude, Vec<float> sign) {
  return from_bits((to_bits(magnitude) & INT32_MAX) | (to_bits(sign) & INT32_MIN));
}
/// 2^e for -127 < e < 128.
inline Vec<float> power_of_two(Mask<float>::Native e) { return from_bits((e + 127) << 23); }

/// c0 + c1 x + c2 x^2 + ...
template <class... Coefficients>
[[gnu::always_inline]] inline Vec<float> polynomial(Vec<float> x, float c0, Coefficients... rest) {
  if constexpr (sizeof...(rest) == 0)
    return c0;
  else
    return polynomial(x, rest...) * x + c0;
}

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// ln 2 in two parts, of which the first has so few bits that its product with an exponent is exact.
inline constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// A normal x > 0 as mantissa * 2^exponent with sqrt(1/2) <= mantissa < sqrt(2).
struct Scaled {
  Vec<float> mantissa;
  Mask<float>::Native exponent;
};
inline Scaled split_exponent(Vec<float> x) {
  constexpr uint32_t sqrt_half = 0x3f3504f3;
  // Unsigned: log() selects away what comes out for a negative x, but the differences may wrap.
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Bits bits = reinterpret_cast<Bits>(to_bits(x));
  const auto exponent = reinterpret_cast<Mask<float>::Native>(bits - sqrt_half) >> 23;
  return {from_bits(reinterpret_cast<Mask<float>::Native>(bits - (reinterpret_cast<Bits>(exponent) << 23))), exponent};
}
// log(1 + f) + ln(2) * exponent for 1 + f in [sqrt(1/2), sqrt(2)): log(1 + f) = f - f^2/2 + f^3 q(f).
inline Vec<float> log_of_scaled(Vec<float> f, Mask<float>::Native exponent) {
  const Vec<float> n = __builtin_convertvector(exponent, Vec<float>::Native);
  const Vec<float> q = polynomial(f, 0.333333126f, -0.250000096f, 0.200021186f, -0.166679959f, 0.142195527f,
                                  -0.124055879f, 0.118881589f, -0.116756555f, 0.067466511f);
  const Vec<float> square = f * f;
  return (q * f * square + n * kLn2Low) - 0.5f * square + f + n * kLn2High;
}

/// 2^x within 2.5 ulp for results in the normal range; 0 below it, infinity above; 1 exactly at 0. With the scaling of
/// a constant by log2(e) done beforehand, a cheaper exp: 2^x = 2^n 2^r with |r| <= 1/2.
inline Vec<float> exp2(Vec<float> x) {
  constexpr float lowest = -126.0f;
#ifdef __AVX512DQ__
  const Vec<float> r = _mm512_maskz_reduce_ps(kAllLanes, x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec<float> n = x - r;
#else
  constexpr float round_to_integer = 12582912.0f, overflowing = 129.0f;  // 1.5 * 2^23, as in exp
  const Vec<float> clamped = select(x < lowest, lowest, select(x > overflowing, overflowing, x));
  const Vec<float> n = (clamped + round_to_integer) - round_to_integer;
  const Vec<float> r = clamped - n;
#endif
  const Vec<float> p = polynomial(r, 1.0f, 0.693147004f, 0.240222424f, 5.55073358e-2f, 9.67151299e-3f, 1.32647273e-3f);
  return select(x < lowest, 0.0f, scale_by_power_of_two(p, n));
}
inline Vec<double> exp2(Vec<double> x) {
  return map(x, [](double lane) { return std::exp2(lane); });
}

/// Natural logarithm within 1 ulp; -infinity at 0, NaN below.
inline Vec<float> log(Vec<float> x) {
  const Mask<float> subnormal = x < std::numeric_limits<float>::min();
  const auto [mantissa, exponent] = split_exponent(select(subnormal, x * 8388608.0f, x));
  const Vec<float> y = log_of_scaled(mantissa - 1.0f, exponent + (subnormal.v & -23));
  return select(x > 0.0f, select(x < kInfinity, y, x), select(x == 0.0f, -kInfinity, kNan));
}
inline Vec<double> log(Vec<double> x) {
  return map(x, [](double lane) { return std::log(lane); });
}

/// log(1 + x) within 1.5 ulp; -infinity at -1, NaN below.
inline Vec<float> log1p(Vec<float> x) {
  const Vec<float> sum = x + 1.0f, added = sum - 1.0f;
  const Vec<float> rest = (1.0f - (sum - added)) + (x - added);  // 1 + x = sum + rest, exactly
  const auto [mantissa, exponent] = split_exponent(sum);
  // 2^-exponent; where the rest no longer counts, any small number that is not subnormal.
  const Vec<float> scale = power_of_two(exponent < 64 ? -exponent : Mask<float>::Native{} - 64);
  const Vec<float> y = log_of_scaled((mantissa - 1.0f) + rest * scale, exponent);
  return select(x > -1.0f, select(x < kInfinity, y, x), select(x == -1.0f, -kInfinity, kNan));
}

/// log(1 + e^x) within 3 ulp: max(x, 0) + log(1 + y) with y = e^-|x| <= 1, whose logarithm is y times a polynomial.
inline Vec<float> softplus(Vec<float> x) {
  const Vec<float> y = exp(-abs(x));
  return max(x, 0.0f) + y * polynomial(y, 0.99999994f, -0.499994934f, 0.333190978f, -0.248429805f, 0.191060022f,
                                       -0.136632353f, 0.0782258287f, -0.0295051634f, 0.00523267547f);
}
inline Vec<double> softplus(Vec<double> x) {
  return map(x, [](double lane) { return std::max(lane, 0.0) + std::log1p(std::exp(-std::abs(lane))); });
}

/// e^x - 1 within 2 ulp. With x = n ln(2) + r: 2^n (e^r - 1) + (2^n - 1).
inline Vec<float> expm1(Vec<float> x) {
  constexpr float log2e = 1.44269504088896341f;
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23, as in exp
  constexpr float lowest = -18.0f, highest = 88.72283f;
  const Vec<float> clamped = min(max(x, lowest), highest);
  const Vec<float> n = (clamped * log2e + round_to_integer) - round_to_integer;
  const Vec<float> high = clamped - n * kLn2High, low = n * kLn2Low;
  const Vec<float> r = high - low;
  const Vec<float> lost = (high - r) - low;
  const Vec<float> q =
      polynomial(r, 0.500000004f, 0.166666664f, 0.0416663579f, 0.00833337733f, 0.00139408739f, 0.000198545748f);
  const Vec<float> p = r + (q * r * r + lost);
  // Half of 2^n, because 2^128 is beyond f32 where the result is not.
  const Vec<float> half = power_of_two(__builtin_convertvector(n.v, Mask<float>::Native) - 1);
  const Vec<float> y = 2.0f * (half * p + (half - 0.5f));
  return select(x == x, select(x > highest, kInfinity, y), x);
}

/// Within 3 ulp: t / (t + 2) with t = e^2|x| - 1.
inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> t = expm1(2.0f * min(abs(x), 10.0f));
  return select(x == x, copysign(t / (t + 2.0f), x), x);
}

/// Distribution function and density of the standard normal, with relative errors below (8 + x^2) 2^-24 where they are
/// normal numbers.
struct NormalDistribution {
  Vec<float> cdf, density;
};
/// cdf(-a) is e^(-a^2 / 2) / (1 + 0.28 a)
/// times a polynomial in a / (1 + 0.28 a) for a >= 0.
inline NormalDistribution normal_distribution(Vec<float> x) {
  constexpr float inv_sqrt_two_pi = 0.398942280f;
  const Vec<float> e = exp(-0.5f * x * x), a = min(abs(x), 14.5f);
  const Vec<float> t = 1.0f / (0.28f * a + 1.0f);
  const Vec<float> p = polynomial(a * t, 0.5f, -0.258942543f, 0.0657947679f, -0.00584486894f, -0.000779351226f,
                                  0.000110764859f, 3.09132405e-5f, -3.6287448e-6f, -9.04885282e-7f, 1.34165510e-7f);
  const Vec<float> tail = e * (p * t);
  return {select(x > 0.0f, 1.0f - tail, tail), inv_sqrt_two_pi * e};
}

// x = k pi/2 + r with |r| <= pi/4, reduced in f64; `quadrant` is k modulo 2^32. Requires |x| <= kLargestAngle.
struct ReducedAngle {
  Vec<float> r;
  Mask<float>::Native quadrant;
};
inline constexpr float kLargestAngle = 1048576.0f;
inline ReducedAngle reduce_angle(Vec<float> x) {
  typedef float HalfLanes __attribute__((vector_size(kVectorBytes / 2)));
  typedef int32_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
  constexpr double two_over_pi = 0.63661977236758134, round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double pi_2_high = 1.5707963267341256, pi_2_low = 6.0771005065061922e-11;         // k * pi_2_high is exact
  std::array<HalfLanes, 2> lanes;
  std::array<HalfBits, 2> quadrants;
  std::memcpy(&lanes, &x.v, sizeof(x.v));
  for (size_t part = 0; part < 2; ++part) {
    const Vec<double> angle(__builtin_convertvector(lanes[part], Vec<double>::Native));
    const Vec<double> shifted = angle * two_over_pi + round_to_integer, k = shifted - round_to_integer;
    lanes[part] = __builtin_convertvector(((angle - k * pi_2_high) - k * pi_2_low).v, HalfLanes);
    quadrants[part] = __builtin_convertvector(to_bits(shifted), HalfBits);
  }
  ReducedAngle result;
  std::memcpy(&result.r.v, &lanes, sizeof(result.r.v));
  std::memcpy(&result.quadrant, &quadrants, sizeof(result.quadrant));
  return result;
}
// sin(r + quadrant pi/2).
inline Vec<float> sine_of(ReducedAngle angle) {
  const Vec<float> r = angle.r, square = r * r;
  const Vec<float> sine = r + r * square * polynomial(square, -0.166666549f, 0.00833217354f, -0.000195166558f);
  const Vec<float> cosine =
      (1.0f - 0.5f * square) + square * square * polynomial(square, 0.0416666467f, -0.00138873615f, 2.44377301e-5f);
  const Vec<float> y = select(Mask<float>{(angle.quadrant & 1) != 0}, cosine, sine);
  return from_bits(to_bits(y) ^ ((angle.quadrant & 2) << 30));
}
// Larger angles need more bits of pi than reduce_angle has; they, infinities and NaN are left to the standard library.
inline bool needs_library(Vec<float> x) {
  return reduce_max(select(abs(x) <= kLargestAngle, 0.0f, Vec<float>(1.0f))) > 0;
}

/// Within 2 ulp; angles in radians.
inline Vec<float> sin(Vec<float> x) {
  if (needs_library(x)) return map(x, [](float lane) { return std::sin(lane); });
  return sine_of(reduce_angle(x));
}
/// Within 2 ulp; angles in radians.
inline Vec<float> cos(Vec<float> x) {
  if (needs_library(x)) return map(x, [](float lane) { return std::cos(lane); });
  ReducedAngle angle = reduce_angle(x);
  angle.quadrant += 1;
  return sine_of(angle);
}

/// x^y = e^(y log x); a negative x needs an integer y. The relative error is below (4 + 2 |y log x|) 2^-24.
inline Vec<float> pow(Vec<float> x, Vec<float> y) {
  const Vec<float> size = exp(y * log(abs(x)));
  constexpr float no_fraction = 8388608.0f, all_even = 16777216.0f;  // f32 from here on are integers, even integers
  const auto truncated = [](Vec<float> v) {
    const Vec<float> small = select(abs(v) < no_fraction, v, 0.0f);
    const Vec<float> whole =
        __builtin_convertvector(__builtin_convertvector(small.v, Mask<float>::Native), decltype(v.v));
    return select(abs(v) < no_fraction, whole, v);
  };
  const Mask<float> integer = truncated(y) == y, even = truncated(0.5f * y) == 0.5f * y;
  const Vec<float> of_negative = select(even | (abs(y) >= all_even), size, select(integer, -size, kNan));
  return select(y == 0.0f, 1.0f, select(x < 0.0f, of_negative, size));
}

}  // namespace margay::simd
