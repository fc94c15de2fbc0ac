#include "ops/linear.h"

#include "engine/device.h"
#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/gemm.cuh"
#include "ops/cuda/rounded.cuh"

namespace margay::kernels {
namespace {

using cuda::MatrixView;

/// What a row adds to dbias: dy.
template <class T>
struct BiasTerm {
  const T* dy;
  int64_t columns;
  template <int N>
  __device__ void operator()(int64_t row, int64_t c, cuda::Pack<acc_t<T>, N> (&values)[1]) const {
    values[0] = cuda::map([](T dy) { return acc_t<T>(dy); }, cuda::load<N>(dy + row * columns + c));
  }
};

template <class T>
void bias_gradient(Cuda context, const LinearBwd<T>& a) {
  constexpr int64_t rows_per_piece = 256;
  const int64_t sums = (a.rows + rows_per_piece - 1) / rows_per_piece * a.N;
  const Scratch scratch(backend(Device{DeviceType::cuda, context.index}).allocator(),
                        static_cast<size_t>(sums) * sizeof(acc_t<T>));
  const cuda::ColumnTotals<1, T> totals{{a.dbias}, a.add_dbias};
  cuda::sum_columns(context, BiasTerm<T>{a.dy, a.N}, a.rows, a.N, rows_per_piece,
                    static_cast<acc_t<T>*>(scratch.data()), totals, {a.dy});
}

}  // namespace

template <class T>
void run(Cuda context, const LinearFwd<T>& a) {
  const auto product = [&]<class F>(MatrixView<F> x, MatrixView<F> weight) {
    cuda::Gemm<F, T> g{x, weight.transposed(), a.y, a.rows, a.N, a.K, a.N};
    g.bias = a.bias;
    cuda::multiply(context, g);
  };
  cuda::with_factors(context, cuda::rounds<T>(a.precision, a.rows, a.N, a.K), product,
                     cuda::Matrix<T>{{a.x, a.K, 1}, a.rows, a.K}, cuda::Matrix<T>{{a.weight, a.K, 1}, a.N, a.K});
}

// dx = dy W, dW = dy^T x, db = column sums of dy.
template <class T>
void run(Cuda context, const LinearBwd<T>& a) {
  const auto products = [&]<class F>(MatrixView<F> dy, MatrixView<F> x, MatrixView<F> weight) {
    if (a.dx) cuda::multiply(context, cuda::Gemm<F, T>{dy, weight, a.dx, a.rows, a.K, a.N, a.K, a.add_dx});
    if (a.dweight) {
      const cuda::Gemm<F, T> g{dy.transposed(), x, a.dweight, a.N, a.K, a.rows, a.K, a.add_dweight};
      cuda::multiply_sliced(context, g, a.groups(a.rows, a.N, a.K), a.workspace);
    }
  };
  // What no wanted gradient needs counts as a matrix without rows.
  const bool rounded = cuda::rounds<T>(a.precision, a.rows, a.N, a.K);
  cuda::with_factors(context, rounded, products, cuda::Matrix<T>{{a.dy, a.N, 1}, a.dx || a.dweight ? a.rows : 0, a.N},
                     cuda::Matrix<T>{{a.x, a.K, 1}, a.dweight ? a.rows : 0, a.K},
                     cuda::Matrix<T>{{a.weight, a.K, 1}, a.dx ? a.N : 0, a.K});
  if (a.dbias) bias_gradient(context, a);
}

template void run(Cuda, const LinearFwd<float>&);
template void run(Cuda, const LinearFwd<double>&);
template void run(Cuda, const LinearFwd<bf16>&);
template void run(Cuda, const LinearBwd<float>&);
template void run(Cuda, const LinearBwd<double>&);
template void run(Cuda, const LinearBwd<bf16>&);

}  // namespace margay::kernels
