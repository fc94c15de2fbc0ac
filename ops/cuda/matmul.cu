#include "ops/matmul.h"

#include "ops/cuda/gemm.cuh"
#include "ops/cuda/rounded.cuh"

namespace margay::kernels {
namespace {

/// A factor with elements of type F: its first matrix, and the strides that lead to the others.
template <class F>
struct Factor {
  cuda::MatrixView<F> view;
  Shape batch_strides, summed_strides;
};

template <class T>
Factor<T> factor_of(const typename Matmul<T>::Factor& f) {
  const cuda::MatrixView<T> view{f.data, f.ld, 1}, columns{f.data, 1, f.ld};
  return {f.transposed ? columns : view, f.batch_strides, f.summed_strides};
}

/// Each matrix of a factor once: an axis along which it is broadcast has none of its own.
cuda::Rounded round(Cuda context, const Factor<float>& factor, int64_t rows, int64_t columns, const Matmul<float>& a) {
  Shape sizes, strides;
  const auto add_axes = [&](const Shape& all, const Shape& along) {
    for (int axis = 0; axis < all.ndim(); ++axis)
      if (along[axis] != 0) sizes.push_back(all[axis]), strides.push_back(along[axis]);
  };
  add_axes(a.batch, factor.batch_strides);
  add_axes(a.summed, factor.summed_strides);
  return cuda::Rounded(context, factor.view, rows, columns, sizes, strides);
}

/// The factor whose matrices `copy` holds in that order.
Factor<bf16> factor_of(const cuda::Rounded& copy, const Factor<float>& original, const Matmul<float>& a) {
  Factor<bf16> result{copy.view(), original.batch_strides, original.summed_strides};
  int64_t distance = copy.distance();
  const auto pack = [&](const Shape& all, Shape& along) {
    for (int axis = all.ndim() - 1; axis >= 0; --axis)
      if (along[axis] != 0) along[axis] = distance, distance *= all[axis];
  };
  pack(a.summed, result.summed_strides);
  pack(a.batch, result.batch_strides);
  return result;
}

template <class T, class F>
void multiply(Cuda context, const Factor<F>& left, const Factor<F>& right, const Matmul<T>& a) {
  cuda::Gemm<F, T> g{left.view, right.view, a.c, a.m, a.n, a.k, a.n, a.add};
  g.batch = cuda::Nest<2>(StridedLoop<2>(a.batch, {left.batch_strides, right.batch_strides}));
  g.summed = cuda::Nest<2>(StridedLoop<2>(a.summed, {left.summed_strides, right.summed_strides}));
  g.c_batch = a.m * a.n;
  cuda::multiply_sliced(context, g, a.depth_pieces(a.batch, a.summed, a.m, a.n, a.k), a.workspace);
}

}  // namespace

template <class T>
void run(Cuda context, const Matmul<T>& a) {
  const Factor<T> left = factor_of<T>(a.a), right = factor_of<T>(a.b);
  if constexpr (std::is_same_v<T, float>) {
    if (cuda::rounds<T>(a.precision, a.m, a.n, a.k)) {
      const cuda::Rounded left_copy = round(context, left, a.m, a.k, a),
                          right_copy = round(context, right, a.k, a.n, a);
      return multiply(context, factor_of(left_copy, left, a), factor_of(right_copy, right, a), a);
    }
  }
  multiply(context, left, right, a);
}

template void run(Cuda, const Matmul<float>&);
template void run(Cuda, const Matmul<double>&);
template void run(Cuda, const Matmul<bf16>&);

}  // namespace margay::kernels
