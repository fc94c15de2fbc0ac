#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// Portable vectors for CPU kernels, as wide as the registers of the build: wider ones the compiler takes apart into
// single lanes.

namespace margay::simd {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct NativeVector;
template <>
struct NativeVector<float> {
  typedef float Lanes __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct NativeVector<double> {
  typedef double Lanes __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

/// All-ones or all-zeros per lane.
template <class T>
struct Mask {
  using Native = typename NativeVector<T>::Bits;
  Native v;
  friend Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
  friend Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
  friend Mask operator!(Mask a) { return {~a.v}; }
};

// The first n < lanes elements at p, and `rest` in the other lanes; and the way back.
template <class T>
typename NativeVector<T>::Lanes load_partial(const T* p, int64_t n, typename NativeVector<T>::Lanes rest) {
  std::memcpy(&rest, p, static_cast<size_t>(n) * sizeof(T));
  return rest;
}
template <class T>
void store_partial(T* p, int64_t n, typename NativeVector<T>::Lanes v) {
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
}
#ifdef __AVX512F__
// GCC warns about the unmasked forms of some intrinsics; all-ones masks leave the same instructions.
inline constexpr __mmask16 kAllLanes = 0xffff;

inline NativeVector<float>::Lanes load_partial(const float* p, int64_t n, NativeVector<float>::Lanes rest) {
  return _mm512_mask_loadu_ps(rest, static_cast<__mmask16>((1u << n) - 1), p);
}
inline NativeVector<double>::Lanes load_partial(const double* p, int64_t n, NativeVector<double>::Lanes rest) {
  return _mm512_mask_loadu_pd(rest, static_cast<__mmask8>((1u << n) - 1), p);
}
inline void store_partial(float* p, int64_t n, NativeVector<float>::Lanes v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
inline void store_partial(double* p, int64_t n, NativeVector<double>::Lanes v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}
#endif

/// kVectorBytes / sizeof(T) lanes of T with arithmetic, comparison and the mathematical functions kernels need.
template <class T>
struct Vec {
  static constexpr int size = kVectorBytes / static_cast<int>(sizeof(T));
  using Native = typename NativeVector<T>::Lanes;
  Native v;

  Vec() = default;
  Vec(Native native) : v(native) {}        // NOLINT: a vector is a vector
  Vec(T scalar) : v(scalar - Native{}) {}  // NOLINT: broadcasts; x - 0 is x for -0 too, so no instruction is left
  /// 0, 1, 2, ...
  static Vec iota() {
    Vec result;
    for (int i = 0; i < size; ++i) result.v[i] = static_cast<T>(i);
    return result;
  }
  static Vec load(const T* p) {
    Vec result;
    std::memcpy(&result.v, p, sizeof(result.v));
    return result;
  }
  /// The first n lanes from memory, `rest` in the others.
  static Vec load(const T* p, int64_t n, T rest = T(0)) {
    return n >= size ? load(p) : Vec(load_partial(p, n, Vec(rest).v));
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  /// The first n lanes.
  void store(T* p, int64_t n) const {
    if (n >= size) {
      store(p);
    } else {
      store_partial(p, n, v);
    }
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  friend Vec operator-(Vec a) { return {-a.v}; }
  Vec& operator+=(Vec b) { return *this = *this + b; }
  Vec& operator-=(Vec b) { return *this = *this - b; }
  Vec& operator*=(Vec b) { return *this = *this * b; }
  friend Mask<T> operator<(Vec a, Vec b) { return {a.v < b.v}; }
  friend Mask<T> operator<=(Vec a, Vec b) { return {a.v <= b.v}; }
  friend Mask<T> operator>(Vec a, Vec b) { return {a.v > b.v}; }
  friend Mask<T> operator>=(Vec a, Vec b) { return {a.v >= b.v}; }
  friend Mask<T> operator==(Vec a, Vec b) { return {a.v == b.v}; }
};

/// Lane by lane: mask ? a : b.
template <class T>
Vec<T> select(Mask<T> mask, std::type_identity_t<Vec<T>> a, std::type_identity_t<Vec<T>> b) {
  return {mask.v ? a.v : b.v};
}
inline float select(bool mask, float a, float b) { return mask ? a : b; }
inline double select(bool mask, double a, double b) { return mask ? a : b; }

template <class T>
Vec<T> max(Vec<T> a, std::type_identity_t<Vec<T>> b) {
  return select(a > b, a, b);
}
template <class T>
Vec<T> min(Vec<T> a, std::type_identity_t<Vec<T>> b) {
  return select(a < b, a, b);
}
template <class T>
Vec<T> abs(Vec<T> a) {
  return max(a, -a);
}

// Folds the upper half of the lanes onto the lower one until a single lane is left.
template <class Lanes, class Function, int... I>
auto fold_lanes(Lanes v, const Function& function, std::integer_sequence<int, I...>) {
  constexpr int half = sizeof...(I);
  if constexpr (half == 1) {
    return function(v[0], v[1]);
  } else {
    return fold_lanes(function(__builtin_shufflevector(v, v, I...), __builtin_shufflevector(v, v, (I + half)...)),
                      function, std::make_integer_sequence<int, half / 2>());
  }
}
template <class T, class Function>
T fold_lanes(Vec<T> a, const Function& function) {
  return fold_lanes(a.v, function, std::make_integer_sequence<int, Vec<T>::size / 2>());
}

/// Sum of the lanes, in a fixed order (halves are folded).
template <class T>
T reduce_add(Vec<T> a) {
  return fold_lanes(a, [](auto x, auto y) { return x + y; });
}
template <class T>
T reduce_max(Vec<T> a) {
  return fold_lanes(a, [](auto x, auto y) { return x > y ? x : y; });
}

/// Applies a scalar function lane by lane.
template <class T, class Function>
Vec<T> map(Vec<T> x, const Function& function) {
  for (int i = 0; i < Vec<T>::size; ++i) x.v[i] = function(x.v[i]);
  return x;
}

template <class T>
Vec<T> sqrt(Vec<T> x) {
  return map(x, [](T lane) { return std::sqrt(lane); });
}
inline Vec<double> exp(Vec<double> x) {
  return map(x, [](double lane) { return std::exp(lane); });
}

/// p * 2^n for integers -252 <= n <= 254, rounded once where the result is a normal number; infinity beyond the range.
inline Vec<float> scale_by_power_of_two(Vec<float> p, Vec<float> n) {
#ifdef __AVX512F__
  return _mm512_maskz_scalef_ps(kAllLanes, p.v, n.v);
#else
  // Two factors, so that 2^128 * p does not overflow before its time.
  const auto exponent = __builtin_convertvector(n.v, Mask<float>::Native);
  const auto half = exponent >> 1;
  const auto power_of_two = [](Mask<float>::Native e) {
    const Mask<float>::Native bits = (e + 127) << 23;
    Vec<float> result;
    std::memcpy(&result.v, &bits, sizeof(bits));
    return result;
  };
  return p * power_of_two(half) * power_of_two(exponent - half);
#endif
}

/// e^x within 1.5 ulp for results in the normal range; 0 below it, infinity above. e^x = 2^n e^r with |r| <= ln(2)/2.
inline Vec<float> exp(Vec<float> x) {
  constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float lowest = -87.33654f, overflowing = 89.0f;
#ifdef __AVX512F__
  const auto raised = _mm512_maskz_max_ps(kAllLanes, Vec<float>(lowest).v, x.v);
  const Vec<float> clamped = _mm512_maskz_min_ps(kAllLanes, Vec<float>(overflowing).v, raised);
#else
  const Vec<float> clamped = select(x < lowest, lowest, select(x > overflowing, overflowing, x));
#endif
  const Vec<float> n = (clamped * log2e + round_to_integer) - round_to_integer;
  const Vec<float> r = clamped - n * ln2_high - n * ln2_low;
  Vec<float> p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return select(x < lowest, 0.0f, scale_by_power_of_two(p, n));
}

}  // namespace margay::simd
