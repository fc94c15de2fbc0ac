#pragma once
#include "engine/cuda/launch.cuh"
#include "ops/unary_functors.h"

// Exponentials for kernels that have more of them than of anything else: in f32 by the instructions of the GPU, with
// errors of a few units in the last place, 0 where the result would be subnormal. f64 is as exact as everywhere.

namespace margay::fast {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

/// 2^x.
__device__ inline float exp2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
__device__ inline double exp2(double x) { return std::exp2(x); }

/// 1 / x.
__device__ inline float reciprocal(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
__device__ inline double reciprocal(double x) { return 1 / x; }

/// e^x; what x log2(e) loses by rounding is put right.
__device__ inline float exp(float x) {
  constexpr auto log2e = static_cast<float>(kLog2E), rest = static_cast<float>(kLog2E - log2e);
  const float y = x * log2e, power = exp2(y);
  const float error = std::fma(x, log2e, -y) + x * rest;  // NaN where x is infinite
  return power == 0 ? 0 : power * (1 + error * static_cast<float>(kLn2));
}
__device__ inline double exp(double x) { return std::exp(x); }

template <class A>
__device__ A sigmoid(A x) {
  return reciprocal(A(1) + exp(-x));
}

/// log(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^-|x|, and s = e / (2 + e) is a third at most.
__device__ inline float softplus(float x) {
  const float e = exp(-std::abs(x)), s = e * reciprocal(2 + e), square = s * s;
  float series = 1.0f / 13;
  series = std::fma(series, square, 1.0f / 11);
  series = std::fma(series, square, 1.0f / 9);
  series = std::fma(series, square, 1.0f / 7);
  series = std::fma(series, square, 1.0f / 5);
  series = std::fma(series, square, 1.0f / 3);
  series = std::fma(series, square, 1.0f);
  return (x < 0 ? 0 : x) + 2 * s * series;
}
__device__ inline double softplus(double x) { return functors::Softplus::value(x); }
/// The derivative of y = softplus(x), 1 - e^-y; near 0 by its series, where 1 would drown it.
__device__ inline float softplus_derivative(float y) {
  const float series = y * (1 - y * (0.5f - y * (1.0f / 6 - y * (1.0f / 24 - y * (1.0f / 120 - y * (1.0f / 720))))));
  return y < 0.25f ? series : 1 - exp(-y);
}
__device__ inline double softplus_derivative(double y) { return functors::Softplus::derivative(0.0, y); }

}  // namespace margay::fast
