#pragma once
#include "engine/op.h"
#include "ops/unary_functors.h"

// Elementwise functions of one tensor: x of any shape and float dtype -> y of the same shape, contiguous. NaN passes
// through. Functions of f32 on the CPU are within the bounds of ops/cpu/simd_math.h. Throw OpError on integer tensors.

namespace margay {

Tensor neg(const Tensor& x);
Tensor square(const Tensor& x);
Tensor sqrt(const Tensor& x);
/// 1 / sqrt(x).
Tensor rsqrt(const Tensor& x);
/// 1 / x.
Tensor reciprocal(const Tensor& x);
Tensor exp(const Tensor& x);
/// e^x - 1, accurate near 0.
Tensor expm1(const Tensor& x);
Tensor log(const Tensor& x);
/// log(1 + x), accurate near 0.
Tensor log1p(const Tensor& x);
/// Sine and cosine of angles in radians, accurate for angles of any size.
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor tanh(const Tensor& x);
/// |x|; the gradient at 0 is 0.
Tensor abs(const Tensor& x);
/// -1, 0 or 1. No gradient.
Tensor sign(const Tensor& x);
/// 1 / (1 + e^-x).
Tensor sigmoid(const Tensor& x);
/// log(sigmoid(x)) and log(1 + e^x), without overflow or cancellation for any x.
Tensor logsigmoid(const Tensor& x);
Tensor softplus(const Tensor& x);
/// max(x, 0); the gradient at 0 is 0.
Tensor relu(const Tensor& x);
/// x where x > 0, alpha (e^x - 1) elsewhere. Throws OpError if alpha < 0. Clevert et al. 2016, arXiv:1511.07289,
/// eq. 14.
Tensor elu(const Tensor& x, double alpha = 1);
/// x P(x), P the distribution function of the standard normal (no tanh approximation). Hendrycks & Gimpel 2016,
/// arXiv:1606.08415.
Tensor gelu(const Tensor& x);
/// x sigmoid(x).
Tensor silu(const Tensor& x);
/// x^exponent; NaN for x < 0 unless the exponent is an integer.
Tensor pow(const Tensor& x, double exponent);
/// x limited to [low, high]; the gradient is 1 inside and on the limits. Throws OpError unless low <= high.
Tensor clamp(const Tensor& x, double low, double high);

namespace kernels {

template <class T>
struct UnaryFwd {
  const T* x;
  T* y;
  int64_t n;
  functors::Unary functor;
};
/// dx = dy * derivative, or dx += where `accumulate`.
template <class T>
struct UnaryBwd {
  const T* saved;  // x or y, as the functor says; null if it saves nothing
  const T* dy;
  T* dx;
  int64_t n;
  bool accumulate;
  functors::Unary functor;
};
template <class T>
void run(Cpu, const UnaryFwd<T>&);
template <class T>
void run(Cuda, const UnaryFwd<T>&);
template <class T>
void run(Cpu, const UnaryBwd<T>&);
template <class T>
void run(Cuda, const UnaryBwd<T>&);

}  // namespace kernels
}  // namespace margay
