#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// Portable vectors for CPU kernels: 64 bytes wide everywhere; the compiler splits them where registers are narrower, so
// results do not depend on the register width of the build.

namespace margay::simd {

inline constexpr int kVectorBytes = 64;

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

/// kVectorBytes / sizeof(T) lanes of T with arithmetic, comparison and the mathematical functions kernels need.
template <class T>
struct Vec {
  static constexpr int size = kVectorBytes / static_cast<int>(sizeof(T));
  using Native = typename NativeVector<T>::Lanes;
  Native v;

  Vec() = default;
  Vec(Native native) : v(native) {}        // NOLINT: a vector is a vector
  Vec(T scalar) : v(Native{} + scalar) {}  // NOLINT: broadcasts
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
    if (n >= size) return load(p);
    Vec result(rest);
    std::memcpy(&result.v, p, static_cast<size_t>(n) * sizeof(T));
    return result;
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  /// The first n lanes.
  void store(T* p, int64_t n) const { std::memcpy(p, &v, n >= size ? sizeof(v) : static_cast<size_t>(n) * sizeof(T)); }

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

/// Sum of the lanes, in a fixed order (halves are folded).
template <class T>
T reduce_add(Vec<T> a) {
  for (int width = Vec<T>::size / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
template <class T>
T reduce_max(Vec<T> a) {
  for (int width = Vec<T>::size / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  return a.v[0];
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

/// e^x within 1.5 ulp for results in the normal range; 0 below it, infinity above. e^x = 2^n e^r with |r| <= ln(2)/2.
inline Vec<float> exp(Vec<float> x) {
  constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float lowest = -87.33654f, highest = 88.72283f;
  const Vec<float> clamped = min(max(x, lowest), highest);
  const Vec<float> n = (clamped * log2e + round_to_integer) - round_to_integer;
  const Vec<float> r = clamped - n * ln2_high - n * ln2_low;
  Vec<float> p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Two factors, so that 2^128 * p does not overflow before its time.
  const auto exponent = __builtin_convertvector(n.v, Mask<float>::Native);
  const auto half = exponent >> 1;
  const auto power_of_two = [](Mask<float>::Native e) {
    const Mask<float>::Native bits = (e + 127) << 23;
    Vec<float> result;
    std::memcpy(&result.v, &bits, sizeof(bits));
    return result;
  };
  const Vec<float> y = p * power_of_two(half) * power_of_two(exponent - half);
  const Vec<float> limited = select(x > highest, std::numeric_limits<float>::infinity(), select(x < lowest, 0.0f, y));
  return select(x == x, limited, x);
}

}  // namespace margay::simd
