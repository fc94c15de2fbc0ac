#pragma once
#include "engine/op.h"

namespace margay {

/// Gated root-mean-square norm over the last axis: y = weight * u / sqrt(mean(u^2) + eps), u = x * silu(z).
/// x, z [..., C], weight [C] -> y [..., C], contiguous. Sums run in acc_t<T>. Throws OpError if z has not the shape of
/// x, or weight is not [C]. Dao & Gu 2024, arXiv:2405.21060 (Mamba-2's output norm, gate before the norm).
Tensor rms_norm_gated(const Tensor& x, const Tensor& z, const Tensor& weight, double eps = 1e-5);

namespace kernels {

template <class T>
struct RmsNormGatedFwd {
  const T *x, *z, *weight;
  T* y;
  acc_t<T>* inv_rms;  // [rows]
  int64_t rows, C;
  double eps;
};
template <class T>
struct RmsNormGatedBwd {
  const T *x, *z, *weight, *dy;
  const acc_t<T>* inv_rms;
  T *dx, *dz, *dweight;
  acc_t<T>* workspace;  // [pieces(rows), C]
  int64_t rows, C;
  /// The weight gradient is summed over pieces of this many rows, then over the pieces.
  static constexpr int64_t kRowsPerPiece = 64;
  static int64_t pieces(int64_t rows) { return (rows + kRowsPerPiece - 1) / kRowsPerPiece; }
};
template <class T>
void run(Cpu, const RmsNormGatedFwd<T>&);
template <class T>
void run(Cuda, const RmsNormGatedFwd<T>&);
template <class T>
void run(Cpu, const RmsNormGatedBwd<T>&);
template <class T>
void run(Cuda, const RmsNormGatedBwd<T>&);

}  // namespace kernels
}  // namespace margay
