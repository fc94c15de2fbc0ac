// The vector functions against the standard library in f64, over bit patterns spread evenly over all of f32: every
// exponent, subnormals, infinities and NaN.

#include "ops/cpu/simd_math.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <string>

namespace margay::test {
namespace {

using Vec = simd::Vec<float>;

constexpr double kSmallestNormal = std::numeric_limits<float>::min();

// Spacing of f32 at y; beyond the largest f32, that of its binade.
double ulp(double y) {
  const int exponent = std::clamp(std::ilogb(y), -126, 127);
  return std::ldexp(1.0, exponent - 23);
}

// How far `got` is from `exact` in ulp; results below the normal range may be flushed to 0.
double error_in_ulp(float got, double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0 : INFINITY;
  const auto rounded = static_cast<float>(exact);
  if (std::isinf(rounded) || std::isinf(got)) return got == rounded ? 0 : INFINITY;
  if (std::abs(exact) < kSmallestNormal && std::abs(got) <= kSmallestNormal) return 0;
  return std::abs(got - exact) / ulp(exact);
}

template <class Function, class Exact>
void check_error(const std::string& name, double bound, const Function& function, const Exact& exact) {
  CAPTURE(name);
  double worst = 0;
  float worst_x = 0;
  constexpr uint64_t step = 10007;  // prime: all low bits take part
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += Vec::size * step) {
    float x[Vec::size], y[Vec::size];
    for (int i = 0; i < Vec::size; ++i)
      x[i] = std::bit_cast<float>(static_cast<uint32_t>(bits + static_cast<uint64_t>(i) * step));
    function(Vec::load(x)).store(y);
    for (int i = 0; i < Vec::size; ++i) {
      const double error = error_in_ulp(y[i], exact(static_cast<double>(x[i])));
      if (error > worst) {
        worst = error;
        worst_x = x[i];
      }
    }
  }
  CAPTURE(worst_x);
  CHECK(worst <= bound);
}

}  // namespace

TEST_CASE("simd: functions of f32 keep their error bounds") {
  check_error(
      "exp2", 2.5, [](Vec x) { return exp2(x); }, [](double x) { return std::exp2(x); });
  check_error(
      "softplus", 3, [](Vec x) { return softplus(x); },
      [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); });
  check_error(
      "exp", 1.5, [](Vec x) { return exp(x); }, [](double x) { return std::exp(x); });
  check_error(
      "log", 1, [](Vec x) { return log(x); }, [](double x) { return std::log(x); });
  check_error(
      "log1p", 1.5, [](Vec x) { return log1p(x); }, [](double x) { return std::log1p(x); });
  check_error(
      "expm1", 2, [](Vec x) { return expm1(x); }, [](double x) { return std::expm1(x); });
  check_error(
      "tanh", 3, [](Vec x) { return tanh(x); }, [](double x) { return std::tanh(x); });
  check_error(
      "sin", 2, [](Vec x) { return sin(x); }, [](double x) { return std::sin(x); });
  check_error(
      "cos", 2, [](Vec x) { return cos(x); }, [](double x) { return std::cos(x); });
}

TEST_CASE("simd: the normal distribution keeps its error bound") {
  for (double x = -13; x < 14; x += 0x1.1p-10) {
    const auto rounded = static_cast<float>(x);
    const auto [cdf, density] = normal_distribution(Vec(rounded));
    const double exact_x = static_cast<double>(rounded), exact_cdf = 0.5 * std::erfc(-exact_x / std::sqrt(2.0));
    const double exact_density = std::exp(-0.5 * exact_x * exact_x) / std::sqrt(2 * 3.14159265358979323846);
    const double bound = (8 + exact_x * exact_x) * 0x1p-24;
    CAPTURE(rounded);
    if (exact_cdf >= kSmallestNormal) CHECK(std::abs(cdf.v[0] - exact_cdf) <= bound * exact_cdf);
    if (exact_density >= kSmallestNormal) CHECK(std::abs(density.v[0] - exact_density) <= bound * exact_density);
  }
}

TEST_CASE("simd: pow keeps its error bound and the cases of the standard library") {
  for (const float y : {0.0f, 1.0f, -1.0f, 3.0f, -4.0f, 0.25f, 2.5f, -0.7f, 15.0f, 16777216.0f, 16777217.0f * 2}) {
    for (const float size : {0.0f, 0.01f, 0.3f, 1.0f, 1.00001f, 2.0f, 7.5f, 1e4f}) {
      for (const float x : {size, -size}) {
        CAPTURE(x);
        CAPTURE(y);
        const double exact = std::pow(static_cast<double>(x), static_cast<double>(y));
        const float got = pow(Vec(x), Vec(y)).v[3];
        if (std::isnan(exact)) {
          CHECK(std::isnan(got));
        } else if (std::abs(exact) < kSmallestNormal || std::abs(exact) > std::numeric_limits<float>::max()) {
          CHECK(std::abs(got) == std::abs(static_cast<float>(std::abs(exact) < 1 ? 0 : exact)));
        } else {
          const double growth = y == 0 ? 0 : std::abs(y * std::log(std::abs(x)));
          CHECK(std::abs(got - exact) <= (4 + 2 * growth) * 0x1p-24 * std::abs(exact));
        }
      }
    }
  }
}

TEST_CASE("simd: the mathematical functions treat lanes alike") {
  float x[Vec::size];
  for (int i = 0; i < Vec::size; ++i) x[i] = static_cast<float>(i) * 0.37f - 2.1f;
  x[5] = 3e9f;  // one lane alone needs the library for its sine
  const Vec y = sin(Vec::load(x));
  for (int i = 0; i < Vec::size; ++i) CHECK(std::abs(y.v[i] - std::sin(x[i])) <= 2e-7f);
}

}  // namespace margay::test
