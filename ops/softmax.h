#pragma once
#include "engine/op.h"

// Softmax along one axis: y_i = e^(x_i) / sum_j e^(x_j), computed relative to the largest x. x [..] of a float dtype ->
// y of the same shape, contiguous. Sums run pairwise in acc_t<T>.

namespace margay {

Tensor softmax(const Tensor& x, int axis = -1);
/// log(softmax(x)), without the rounding of small weights to 0.
Tensor log_softmax(const Tensor& x, int axis = -1);
/// Softmax over the last axis with weight 0 where `mask` is true: softmax(masked_fill(x, mask, -infinity)), but with
/// weights 0 where a whole row is masked. mask is bool and broadcasts to the shape of x; throws OpError if it does not.
Tensor masked_softmax(const Tensor& x, const Tensor& mask);

namespace kernels {

/// Rows of C elements. Row r reads row r % mask_rows of the mask, if there is one.
template <class T>
struct SoftmaxFwd {
  const T* x;
  const bool* mask;
  T* y;
  int64_t rows, C, mask_rows;
  bool log;
};
/// dx = y (dy - sum(y dy)), with `log` dx = dy - e^y sum(dy); or dx += where `accumulate`.
template <class T>
struct SoftmaxBwd {
  const T *y, *dy;
  T* dx;
  int64_t rows, C;
  bool log, accumulate;
};
template <class T>
void run(Cpu, const SoftmaxFwd<T>&);
template <class T>
void run(Cuda, const SoftmaxFwd<T>&);
template <class T>
void run(Cpu, const SoftmaxBwd<T>&);
template <class T>
void run(Cuda, const SoftmaxBwd<T>&);

}  // namespace kernels
}  // namespace margay
