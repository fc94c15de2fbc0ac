#pragma once
#include "engine/op.h"

namespace margay {

/// Unit rows: y = x / max(|x|, 1e-12) over the last axis. x [..., C] -> y [..., C], contiguous. A zero row stays zero;
/// where |x| < 1e-12 the gradient is 0. Sums run pairwise in acc_t<T>. Throws OpError if x has no axis.
Tensor l2_normalize(const Tensor& x);

namespace kernels {

template <class T>
struct L2NormalizeFwd {
  const T* x;
  T* y;
  acc_t<T>* inv_norm;  // [rows]; 0 where |x| < kSmallest, which makes the gradient 0
  int64_t rows, C;
  static constexpr double kSmallest = 1e-12;
};
/// dx = inv_norm (dy - y (y . dy)), or dx += where `accumulate`.
template <class T>
struct L2NormalizeBwd {
  const T *y, *dy;
  const acc_t<T>* inv_norm;
  T* dx;
  int64_t rows, C;
  bool accumulate;
};
template <class T>
void run(Cpu, const L2NormalizeFwd<T>&);
template <class T>
void run(Cuda, const L2NormalizeFwd<T>&);
template <class T>
void run(Cpu, const L2NormalizeBwd<T>&);
template <class T>
void run(Cuda, const L2NormalizeBwd<T>&);

}  // namespace kernels
}  // namespace margay
