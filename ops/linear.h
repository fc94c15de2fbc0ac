#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/op.h"
#include "ops/precision.h"

namespace margay {

/// y = x W^T + b over the last axis: x [..., K], weight [N, K], bias [N] or undefined -> y [..., N], contiguous.
/// Throws OpError if weight is not [N, K] or bias not [N].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

namespace kernels {

template <class T>
struct LinearFwd {
  const T *x, *weight, *bias;  // bias: null if there is none
  T* y;
  int64_t rows, N, K;
  Precision precision = Precision::f32;  // of products of floats
};
/// Gradients that are null are not wanted; an `add_` flag asks for the gradient to be added to what is there.
template <class T>
struct LinearBwd {
  const T *x, *weight, *dy;
  T *dx, *dweight, *dbias;
  bool add_dx, add_dweight, add_dbias;
  acc_t<T>* workspace;
  int64_t rows, N, K;
  Precision precision = Precision::f32;

  /// Groups of rows whose weight gradients are summed apart. 1 if the rows are few, or N K so large that the weight
  /// gradient is cut instead.
  static int64_t groups(int64_t rows, int64_t N, int64_t K) {
    constexpr int64_t largest_workspace = 1 << 22;  // elements
    int64_t groups = rows < 512 ? 1 : std::clamp<int64_t>(rows / 1024 * 2, 2, 16);
    while (groups > 1 && groups * N * (K + 1) > largest_workspace) groups /= 2;
    return groups;
  }
  /// Elements: each group's weight gradient [N, K] and bias gradient [N].
  static int64_t workspace_size(int64_t rows, int64_t N, int64_t K) {
    const int64_t count = groups(rows, N, K);
    return count > 1 ? count * N * (K + 1) : 0;
  }
};
template <class T>
void run(Cpu, const LinearFwd<T>&);
template <class T>
void run(Cuda, const LinearFwd<T>&);
template <class T>
void run(Cpu, const LinearBwd<T>&);
template <class T>
void run(Cuda, const LinearBwd<T>&);

}  // namespace kernels
}  // namespace margay
