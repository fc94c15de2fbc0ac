#pragma once
#include <cmath>
#include <variant>

#include "engine/host_device.h"

// y = value(x) and dy/dx = derivative(x, y) of the elementwise ops, for scalars on both devices and for the vectors of
// CPU kernels (T = simd::Vec<float>), whose functions are found by their argument. `saves` names what the derivative
// reads; the other argument is then arbitrary.
namespace margay::functors {

using std::abs;
using std::cos;
using std::erfc;
using std::exp;
using std::expm1;
using std::log;
using std::log1p;
using std::pow;
using std::sin;
using std::sqrt;
using std::tanh;
HOST_DEVICE inline float select(bool condition, float a, float b) { return condition ? a : b; }
HOST_DEVICE inline double select(bool condition, double a, double b) { return condition ? a : b; }

enum class Saves { nothing, input, output };

struct Neg {
  static constexpr Saves saves = Saves::nothing;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return -x;
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T) {
    return T(-1);
  }
};

struct Square {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return x * x;
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return x + x;
  }
};

struct Sqrt {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return sqrt(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return T(0.5) / y;
  }
};

struct Rsqrt {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return T(1) / sqrt(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return T(-0.5) * y * y * y;
  }
};

struct Reciprocal {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return T(1) / x;
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return -y * y;
  }
};

struct Exp {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return exp(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return y;
  }
};

struct Expm1 {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return expm1(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return y + T(1);
  }
};

struct Log {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return log(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return T(1) / x;
  }
};

struct Log1p {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return log1p(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return T(1) / (x + T(1));
  }
};

struct Sin {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return sin(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return cos(x);
  }
};

struct Cos {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return cos(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return -sin(x);
  }
};

struct Tanh {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return tanh(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return T(1) - y * y;
  }
};

struct Sign {
  static constexpr Saves saves = Saves::nothing;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return select(x > T(0), T(1), select(x < T(0), T(-1), x));
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T) {
    return T(0);
  }
};

struct Abs {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return abs(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    return Sign::value(x);
  }
};

struct Sigmoid {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return T(1) / (T(1) + exp(-x));
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return y * (T(1) - y);
  }
};

/// log(1 + e^x) = max(x, 0) + log1p(e^-|x|); its derivative sigmoid(x) is 1 - e^-y.
struct Softplus {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return select(x < T(0), T(0), x) + log1p(exp(-abs(x)));
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return -expm1(-y);
  }
};

/// log(sigmoid(x)) = -softplus(-x).
struct LogSigmoid {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return -Softplus::value(-x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return -expm1(y);
  }
};

struct Relu {
  static constexpr Saves saves = Saves::output;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return select(x < T(0), T(0), x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T, T y) {
    return select(y > T(0), T(1), T(0));
  }
};

/// x for x > 0, alpha (e^x - 1) below; alpha >= 0, so that the sign of y tells the side.
struct Elu {
  static constexpr Saves saves = Saves::output;
  double alpha = 1;
  template <class T>
  HOST_DEVICE T value(T x) const {
    return select(x > T(0), x, T(alpha) * expm1(x));
  }
  template <class T>
  HOST_DEVICE T derivative(T, T y) const {
    return select(y > T(0), T(1), y + T(alpha));
  }
};

/// Distribution function and density of the standard normal; vectors have an overload of their own.
template <class T>
struct NormalDistribution {
  T cdf, density;
};
template <class T>
HOST_DEVICE NormalDistribution<T> normal_distribution(T x) {
  constexpr double sqrt_half = 0.7071067811865476, inv_sqrt_two_pi = 0.3989422804014327;
  return {T(0.5) * erfc(x * T(-sqrt_half)), T(inv_sqrt_two_pi) * exp(T(-0.5) * x * x)};
}

/// x P(x), P the distribution function of the standard normal, without cancellation where it is tiny.
struct Gelu {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return x * normal_distribution(x).cdf;
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    const auto [cdf, density] = normal_distribution(x);
    return cdf + x * density;
  }
};

/// x sigmoid(x).
struct Silu {
  static constexpr Saves saves = Saves::input;
  template <class T>
  HOST_DEVICE static T value(T x) {
    return x * Sigmoid::value(x);
  }
  template <class T>
  HOST_DEVICE static T derivative(T x, T) {
    const T gate = Sigmoid::value(x);
    return gate + gate * x * (T(1) - gate);
  }
};

struct Pow {
  static constexpr Saves saves = Saves::input;
  double exponent = 1;
  template <class T>
  HOST_DEVICE T value(T x) const {
    return pow(x, T(exponent));
  }
  template <class T>
  HOST_DEVICE T derivative(T x, T) const {
    return exponent == 0 ? T(0) : T(exponent) * pow(x, T(exponent - 1));
  }
};

struct Clamp {
  static constexpr Saves saves = Saves::input;
  double low = 0, high = 0;
  template <class T>
  HOST_DEVICE T value(T x) const {
    return select(x < T(low), T(low), select(x > T(high), T(high), x));
  }
  template <class T>
  HOST_DEVICE T derivative(T x, T) const {
    return select(x < T(low), T(0), select(x > T(high), T(0), T(1)));
  }
};

/// Every elementwise op: the kernels are compiled for each of these.
using Unary = std::variant<Neg, Square, Sqrt, Rsqrt, Reciprocal, Exp, Expm1, Log, Log1p, Sin, Cos, Tanh, Sign, Abs,
                           Sigmoid, Softplus, LogSigmoid, Relu, Elu, Gelu, Silu, Pow, Clamp>;

}  // namespace margay::functors
