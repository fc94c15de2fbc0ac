#pragma once
#include <cstdint>
#include <span>

#include "engine/op.h"

namespace margay {

/// Euclidean norm over all elements of all tensors, a 0-d f64 tensor: squares are summed in f64, in an order that the
/// sizes alone decide. Undefined tensors are skipped; none at all gives 0. Throws OpError unless all are of one float
/// dtype and device.
Tensor global_norm(std::span<const Tensor> tensors);

/// What gradients of this norm are to be multiplied by so that their norm is at most max_norm:
/// min(1, max_norm / (norm + 1e-6)); 1 where max_norm is 0, i.e. no clipping. NaN, with which adamw_step takes no step,
/// where the norm or the loss is NaN or infinite. norm, loss (undefined: none) and result are 0-d f64 on one device.
/// Throws OpError for other tensors and for a negative max_norm.
Tensor clip_coefficient(const Tensor& norm, double max_norm, const Tensor& loss = {});

namespace kernels {

struct NormTensor {
  const void* data;
  int64_t size, first_block;
};
template <class T>
struct GlobalNorm {
  const NormTensor* tensors;
  int64_t count, blocks;
  double *workspace, *norm;                 // workspace: [blocks]
  static constexpr int64_t kBlock = 16384;  // elements; a block lies in one tensor
};
template <class T>
struct ClipCoefficient {
  using dtypes = Types<double>;
  const T *norm, *loss;  // loss may be null
  T* coefficient;
  double max_norm;
};
template <class T>
void run(Cpu, const GlobalNorm<T>&);
template <class T>
void run(Cuda, const GlobalNorm<T>&);
template <class T>
void run(Cpu, const ClipCoefficient<T>&);
template <class T>
void run(Cuda, const ClipCoefficient<T>&);

}  // namespace kernels
}  // namespace margay
