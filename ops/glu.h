#pragma once
#include "engine/op.h"
#include "ops/unary_functors.h"

// Gated linear units: the last axis of x [..., 2m] holds two halves a and b -> y [..., m], contiguous. Throw OpError if
// its size is odd.

namespace margay {

/// silu(a) * b. Shazeer 2020, arXiv:2002.05202, eq. 5.
Tensor swiglu(const Tensor& x);
/// a * sigmoid(b). Dauphin et al. 2017, arXiv:1612.08083, eq. 1.
Tensor glu(const Tensor& x);

namespace functors {

/// y = value(a, b); da and db are its derivatives.
struct SwiGlu {
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return Silu::value(a) * b;
  }
  template <class T>
  HOST_DEVICE static T da(T a, T b) {
    return Silu::derivative(a, T(0)) * b;
  }
  template <class T>
  HOST_DEVICE static T db(T a, T) {
    return Silu::value(a);
  }
};
struct Glu {
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return a * Sigmoid::value(b);
  }
  template <class T>
  HOST_DEVICE static T da(T, T b) {
    return Sigmoid::value(b);
  }
  template <class T>
  HOST_DEVICE static T db(T a, T b) {
    return a * Sigmoid::derivative(b, Sigmoid::value(b));
  }
};
using Gated = std::variant<SwiGlu, Glu>;

}  // namespace functors

namespace kernels {

/// x [rows, 2 m] -> y [rows, m].
template <class T>
struct GluFwd {
  const T* x;
  T* y;
  int64_t rows, m;
  functors::Gated functor;
};
/// dx [rows, 2 m] from dy [rows, m].
template <class T>
struct GluBwd {
  const T *x, *dy;
  T* dx;
  int64_t rows, m;
  functors::Gated functor;
};
template <class T>
void run(Cpu, const GluFwd<T>&);
template <class T>
void run(Cuda, const GluFwd<T>&);
template <class T>
void run(Cpu, const GluBwd<T>&);
template <class T>
void run(Cuda, const GluBwd<T>&);

}  // namespace kernels
}  // namespace margay
