#include "ops/softmax.h"

#include <limits>

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// A team per row, which it reads three times: for the maximum, the sum and the result.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(SoftmaxFwd<T> a) {
  using A = acc_t<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T* const input = a.x + row * a.C;
    const bool* const mask = a.mask ? a.mask + row % a.mask_rows * a.C : nullptr;
    T* const y = a.y + row * a.C;
    const auto x = [=](int64_t i) { return mask && mask[i] ? lowest : A(input[i]); };
    A largest = lowest;
    int open = 0;  // elements that are not masked
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      largest = cuda::Largest::combine(largest, x(i));
      open += !(mask && mask[i]);
    }
    largest = Team::template reduce<cuda::Largest>(largest);
    const bool all_masked = Team::template reduce<cuda::Sum>(open) == 0;
    const A total = cuda::team_sum<Team>(a.C, [=](int64_t i) { return std::exp(x(i) - largest); });
    const A scale = 1 / total, log_total = a.log ? std::log(total) : A(0);
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      const A value = a.log ? x(i) - largest - log_total : std::exp(x(i) - largest) * scale;
      y[i] = T(all_masked ? A(0) : value);
    }
  }
}

template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(SoftmaxBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T *const y = a.y + row * a.C, *const dy = a.dy + row * a.C;
    T* const dx = a.dx + row * a.C;
    const bool log = a.log;
    const A total = cuda::team_sum<Team>(a.C, [=](int64_t i) { return log ? A(dy[i]) : A(dy[i]) * A(y[i]); });
    for (int64_t i = Team::rank(); i < a.C; i += Team::kSize) {
      const A g(dy[i]), weight(y[i]);
      A gradient = log ? g - std::exp(weight) * total : weight * (g - total);
      if (a.accumulate) gradient += A(dx[i]);
      dx[i] = T(gradient);
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const SoftmaxFwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
}

template <class T>
void run(Cuda cuda, const SoftmaxBwd<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.C, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const SoftmaxFwd<float>&);
template void run(Cuda, const SoftmaxFwd<double>&);
template void run(Cuda, const SoftmaxFwd<bf16>&);
template void run(Cuda, const SoftmaxBwd<float>&);
template void run(Cuda, const SoftmaxBwd<double>&);
template void run(Cuda, const SoftmaxBwd<bf16>&);

}  // namespace margay::kernels
