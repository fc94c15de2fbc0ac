#include "ops/layer_norm.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// A team per row, which it reads three times: for the mean, the squares of the deviations, and the result.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(LayerNormFwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T* const input = a.x + row * a.C;
    const T* const residual = a.residual ? a.residual + row * a.C : nullptr;
    T* const sum = a.residual ? a.sum + row * a.C : nullptr;
    const A mean = cuda::team_sum<Team>(a.C,
                                        [=](int64_t i) {
                                          if (!residual) return A(input[i]);
                                          const T added(A(input[i]) + A(residual[i]));
                                          sum[i] = added;
                                          return A(added);
                                        }) /
                   A(a.C);
    const T* const x = sum ? sum : input;  // each thread reads what it wrote itself
    const A squares = cuda::team_sum<Team>(a.C, [=](int64_t i) {
      const A deviation = A(x[i]) - mean;
      return deviation * deviation;
    });
    const A inv_std = 1 / std::sqrt(squares / A(a.C) + A(a.eps));
    if (Team::rank() == 0) {
      a.mean[row] = mean;
      a.inv_std[row] = inv_std;
    }
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize)
      a.y[row * a.C + i] = T((A(x[i]) - mean) * inv_std * A(a.weight[i]) + A(a.bias[i]));
  }
}

// With xhat = (x - mean) inv_std and g = weight dy: dx = inv_std (g - mean(g) - xhat mean(g xhat)). A team per row.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(LayerNormBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const int64_t start = row * a.C;
    const A mean = a.mean[row], inv_std = a.inv_std[row];
    const auto xhat = [&](int64_t i) { return (A(a.x[start + i]) - mean) * inv_std; };
    const auto g = [&](int64_t i) { return A(a.dy[start + i]) * A(a.weight[i]); };
    A sum(0), dot(0);
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      sum += g(i);
      dot += g(i) * xhat(i);
    }
    const A mean_g = Team::template reduce<cuda::Sum>(sum) / A(a.C);
    const A mean_dot = Team::template reduce<cuda::Sum>(dot) / A(a.C);
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      A dx = (g(i) - mean_g - xhat(i) * mean_dot) * inv_std;
      if (a.dresidual) dx += A(a.dresidual[start + i]);
      a.dx[start + i] = T(dx);
    }
  }
}

// What a row adds to dweight and dbias: dy xhat and dy.
template <class T>
struct ParameterTerms {
  LayerNormBwd<T> a;
  __device__ void operator()(int64_t row, int64_t c, acc_t<T> (&values)[2]) const {
    using A = acc_t<T>;
    const A dy(a.dy[row * a.C + c]);
    values[0] = dy * ((A(a.x[row * a.C + c]) - a.mean[row]) * a.inv_std[row]);
    values[1] = dy;
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const LayerNormFwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
}

template <class T>
void run(Cuda cuda, const LayerNormBwd<T>& a) {
  if (a.dweight)
    cuda::sum_columns<2>(cuda, ParameterTerms<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, {a.dweight, a.dbias});
  if (a.dx) cuda::launch_rows(cuda, a.rows, a.C, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const LayerNormFwd<float>&);
template void run(Cuda, const LayerNormFwd<double>&);
template void run(Cuda, const LayerNormFwd<bf16>&);
template void run(Cuda, const LayerNormBwd<float>&);
template void run(Cuda, const LayerNormBwd<double>&);
template void run(Cuda, const LayerNormBwd<bf16>&);

}  // namespace margay::kernels
