#include "ops/rms_norm_gated.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/rows.cuh"
#include "ops/unary_functors.h"

namespace margay::kernels {
namespace {

// A team per row; u = x silu(z) is computed again rather than stored.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(RmsNormGatedFwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T *const x = a.x + row * a.C, *const z = a.z + row * a.C;
    const auto u = [=](int64_t i) { return A(x[i]) * functors::Silu::value(A(z[i])); };
    const A squares = cuda::team_sum<Team>(a.C, [=](int64_t i) {
      const A value = u(i);
      return value * value;
    });
    const A inv_rms = 1 / std::sqrt(squares / A(a.C) + A(a.eps));
    if (Team::rank() == 0) a.inv_rms[row] = inv_rms;
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) a.y[row * a.C + i] = T(u(i) * inv_rms * A(a.weight[i]));
  }
}

// With s = inv_rms, uhat = s u and g = weight dy: du = s (g - uhat mean(g uhat)), dx = du silu(z), dz = du x silu'(z).
// A team per row.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(RmsNormGatedBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const int64_t start = row * a.C;
    const A s = a.inv_rms[row];
    const auto g = [&](int64_t i) { return A(a.dy[start + i]) * A(a.weight[i]); };
    const A mean = cuda::team_sum<Team>(a.C,
                                        [&](int64_t i) {
                                          const A silu = functors::Silu::value(A(a.z[start + i]));
                                          return g(i) * (A(a.x[start + i]) * silu * s);
                                        }) /
                   A(a.C);
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      const A x(a.x[start + i]), z(a.z[start + i]), silu = functors::Silu::value(z);
      const A du = (g(i) - x * silu * (s * mean)) * s;
      a.dx[start + i] = T(du * silu);
      a.dz[start + i] = T(du * x * functors::Silu::derivative(z, silu));
    }
  }
}

// What a row adds to dweight: dy uhat.
template <class T>
struct WeightTerm {
  RmsNormGatedBwd<T> a;
  __device__ void operator()(int64_t row, int64_t c, acc_t<T> (&values)[1]) const {
    using A = acc_t<T>;
    const int64_t at = row * a.C + c;
    values[0] = A(a.dy[at]) * (A(a.x[at]) * functors::Silu::value(A(a.z[at])) * a.inv_rms[row]);
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const RmsNormGatedFwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
}

template <class T>
void run(Cuda cuda, const RmsNormGatedBwd<T>& a) {
  cuda::sum_columns<1>(cuda, WeightTerm<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, {a.dweight});
  cuda::launch_rows(cuda, a.rows, a.C, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const RmsNormGatedFwd<float>&);
template void run(Cuda, const RmsNormGatedFwd<double>&);
template void run(Cuda, const RmsNormGatedFwd<bf16>&);
template void run(Cuda, const RmsNormGatedBwd<float>&);
template void run(Cuda, const RmsNormGatedBwd<double>&);
template void run(Cuda, const RmsNormGatedBwd<bf16>&);

}  // namespace margay::kernels
