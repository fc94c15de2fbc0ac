#pragma once
#include "engine/op.h"

namespace margay {

/// Layer norm over the last axis: y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var (the biased one) of
/// each row. x [..., C], weight [C], bias [C] -> y [..., C], contiguous. Sums run in acc_t<T>. Throws OpError if weight
/// or bias is not [C]. Ba et al. 2016, arXiv:1607.06450, eq. 4.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

/// A residual connection and the norm behind it in one pass over memory: {sum, y} with sum = x + residual and
/// y = layer_norm(sum, weight, bias, eps). residual has the shape of x.
Tensors add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                       double eps = 1e-5);

namespace kernels {

template <class T>
struct LayerNormFwd {
  const T *x, *residual;  // residual and sum may be null
  const T *weight, *bias;
  T *sum, *y;
  acc_t<T>*mean, *inv_std;  // [rows]
  int64_t rows, C;
  double eps;
};
/// x is what was normalised; dx = gradient + dresidual, where it is not null (it may be dx itself). A null dx, or null
/// dweight and dbias, are not wanted.
template <class T>
struct LayerNormBwd {
  const T *x, *weight, *dy, *dresidual;
  const acc_t<T>*mean, *inv_std;
  T *dx, *dweight, *dbias;
  acc_t<T>* workspace;  // [pieces(rows), 2, C]
  int64_t rows, C;
  /// The gradients of weight and bias are summed over pieces of this many rows, then over the pieces.
  static constexpr int64_t kRowsPerPiece = 256;
  static int64_t pieces(int64_t rows) { return (rows + kRowsPerPiece - 1) / kRowsPerPiece; }
};
template <class T>
void run(Cpu, const LayerNormFwd<T>&);
template <class T>
void run(Cuda, const LayerNormFwd<T>&);
template <class T>
void run(Cpu, const LayerNormBwd<T>&);
template <class T>
void run(Cuda, const LayerNormBwd<T>&);

}  // namespace kernels
}  // namespace margay
