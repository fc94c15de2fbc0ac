#include "ops/l2_normalize.h"

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(L2NormalizeFwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T* const x = a.x + row * a.C;
    const A norm = std::sqrt(cuda::team_sum<Team>(a.C, [=](int64_t i) { return A(x[i]) * A(x[i]); }));
    constexpr A smallest = A(L2NormalizeFwd<T>::kSmallest);
    const A scale = 1 / (norm < smallest ? smallest : norm);
    if (Team::rank() == 0) a.inv_norm[row] = norm < smallest ? A(0) : scale;
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) a.y[row * a.C + i] = T(A(x[i]) * scale);
  }
}

template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(L2NormalizeBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T *const y = a.y + row * a.C, *const dy = a.dy + row * a.C;
    T* const dx = a.dx + row * a.C;
    const A dot = cuda::team_sum<Team>(a.C, [=](int64_t i) { return A(y[i]) * A(dy[i]); });
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      A gradient = (A(dy[i]) - A(y[i]) * dot) * a.inv_norm[row];
      if (a.accumulate) gradient += A(dx[i]);
      dx[i] = T(gradient);
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const L2NormalizeFwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
}

template <class T>
void run(Cuda cuda, const L2NormalizeBwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const L2NormalizeFwd<float>&);
template void run(Cuda, const L2NormalizeFwd<double>&);
template void run(Cuda, const L2NormalizeFwd<bf16>&);
template void run(Cuda, const L2NormalizeBwd<float>&);
template void run(Cuda, const L2NormalizeBwd<double>&);
template void run(Cuda, const L2NormalizeBwd<bf16>&);

}  // namespace margay::kernels
