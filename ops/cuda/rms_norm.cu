#include "ops/rms_norm.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// A team per row.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(RmsNormFwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T* const x = a.x + row * a.C;
    const A squares = cuda::team_sum<Team>(a.C, [=](int64_t i) { return A(x[i]) * A(x[i]); });
    const A inv_rms = 1 / std::sqrt(squares / A(a.C) + A(a.eps));
    if (Team::rank() == 0) a.inv_rms[row] = inv_rms;
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize)
      a.y[row * a.C + i] = T(A(x[i]) * inv_rms * A(a.weight[i]));
  }
}

// With s = inv_rms, xhat = s x and g = weight dy: dx = s (g - xhat mean(g xhat)). A team per row.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(RmsNormBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const int64_t start = row * a.C;
    const A s = a.inv_rms[row];
    const auto xhat = [&](int64_t i) { return A(a.x[start + i]) * s; };
    const auto g = [&](int64_t i) { return A(a.dy[start + i]) * A(a.weight[i]); };
    const A mean = cuda::team_sum<Team>(a.C, [&](int64_t i) { return g(i) * xhat(i); }) / A(a.C);
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) a.dx[start + i] = T((g(i) - xhat(i) * mean) * s);
  }
}

// What a row adds to dweight: dy xhat.
template <class T>
struct WeightTerm {
  RmsNormBwd<T> a;
  __device__ void operator()(int64_t row, int64_t c, acc_t<T> (&values)[1]) const {
    using A = acc_t<T>;
    values[0] = A(a.dy[row * a.C + c]) * (A(a.x[row * a.C + c]) * a.inv_rms[row]);
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const RmsNormFwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
}

template <class T>
void run(Cuda cuda, const RmsNormBwd<T>& a) {
  cuda::sum_columns<1>(cuda, WeightTerm<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, {a.dweight});
  cuda::launch_rows(cuda, a.rows, a.C, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const RmsNormFwd<float>&);
template void run(Cuda, const RmsNormFwd<double>&);
template void run(Cuda, const RmsNormFwd<bf16>&);
template void run(Cuda, const RmsNormBwd<float>&);
template void run(Cuda, const RmsNormBwd<double>&);
template void run(Cuda, const RmsNormBwd<bf16>&);

}  // namespace margay::kernels
