#pragma once
#include "engine/op.h"

namespace margay {

/// Root-mean-square norm over the last axis: y = weight * x / sqrt(mean(x^2) + eps).
/// x [..., C], weight [C] -> y [..., C], contiguous. Sums run in acc_t<T> (f32 for bf16).
/// Throws OpError if weight is not [C]. Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps = 1e-5);

namespace kernels {

template <class T>
struct RmsNormFwd {
  const T *x, *weight;
  T* y;
  acc_t<T>* inv_rms;
  int64_t rows, C;
  double eps;
};
template <class T>
struct RmsNormBwd {
  const T *x, *weight, *dy;
  const acc_t<T>* inv_rms;
  T *dx, *dweight;
  acc_t<T>* workspace;  // [pieces(rows), C]
  int64_t rows, C;
  /// The weight gradient is summed over pieces of this many rows, then over the pieces.
  static constexpr int64_t kRowsPerPiece = 256;
  static int64_t pieces(int64_t rows) { return (rows + kRowsPerPiece - 1) / kRowsPerPiece; }
};
template <class T>
void run(Cpu, const RmsNormFwd<T>&);
template <class T>
void run(Cuda, const RmsNormFwd<T>&);
template <class T>
void run(Cpu, const RmsNormBwd<T>&);
template <class T>
void run(Cuda, const RmsNormBwd<T>&);

}  // namespace kernels
}  // namespace margay
