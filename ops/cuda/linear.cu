#include "ops/linear.h"

#include "ops/cuda/gemm.cuh"
#include "ops/cuda/rounded.cuh"

namespace margay::kernels {
namespace {

using cuda::MatrixView;

/// out[j] = sum over rows of dy[r, j], added where `add`. Lanes are columns, and the rows of a block share the terms.
template <class T>
__global__ void column_sums(const T* dy, int64_t rows, int64_t N, bool add, T* out) {
  using A = acc_t<T>;
  constexpr int shares = cuda::kThreads / cuda::kWarp;
  __shared__ A parts[shares][cuda::kWarp];
  const int64_t column = int64_t{blockIdx.x} * cuda::kWarp + threadIdx.x;
  A sum(0);
  if (column < N)
    for (int64_t row = threadIdx.y; row < rows; row += shares) sum += A(dy[row * N + column]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= N) return;
  for (int share = 1; share < shares; ++share) sum += parts[share][threadIdx.x];
  if (add) sum += A(out[column]);
  out[column] = T(sum);
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
  if (a.dbias) {
    const int64_t blocks = (a.N + cuda::kWarp - 1) / cuda::kWarp;
    if (blocks == 0) return;
    cuda::launch(context, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kWarp, cuda::kThreads / cuda::kWarp),
                 column_sums<T>, a.dy, a.rows, a.N, a.add_dbias, a.dbias);
  }
}

template void run(Cuda, const LinearFwd<float>&);
template void run(Cuda, const LinearFwd<double>&);
template void run(Cuda, const LinearFwd<bf16>&);
template void run(Cuda, const LinearBwd<float>&);
template void run(Cuda, const LinearBwd<double>&);
template void run(Cuda, const LinearBwd<bf16>&);

}  // namespace margay::kernels
