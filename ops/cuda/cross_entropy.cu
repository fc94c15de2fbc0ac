#include "ops/cross_entropy.h"

#include <limits>

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// The larger one; a number where there is one.
struct LargestNumber {
  template <class A>
  __device__ static A combine(A a, A b) {
    return b > a || a != a ? b : a;
  }
};

// A team per labelled row, which it reads twice: for the maximum with its first place, and for the sum.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(CrossEntropyFwd<T> a) {
  using A = acc_t<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  for (int64_t i = Team::first(); i < a.n; i += Team::step()) {
    const int64_t row = a.rows[i];
    const T* const logits = a.logits + row * a.V;
    A top = lowest;
    int64_t place = a.V;
    for (int64_t j = Team::rank(); j < a.V; j += Team::kSize) {
      const A logit(logits[j]);
      if (!(logit > top)) continue;
      top = logit;
      place = j;
    }
    const A max = Team::template reduce<LargestNumber>(top);
    place = Team::template reduce<cuda::Smallest>(top == max ? place : a.V);
    const A sum = cuda::team_sum<Team>(a.V, [=](int64_t j) { return std::exp(A(logits[j]) - max); });
    if (Team::rank() > 0) continue;
    a.row_max[i] = max;
    a.inv_sum[i] = 1 / sum;
    a.argmax[row] = place < a.V ? static_cast<int32_t>(place) : 0;  // the first, where no logit is above -infinity
    a.nll[row] = T(max - A(logits[a.targets[row]]) + std::log(sum));
  }
}

// One block: the mean of nll over the labelled rows, in f64.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) mean_loss(const T* nll, const int32_t* rows, int64_t n, T* loss) {
  using A = acc_t<T>;
  const double sum =
      cuda::team_sum<cuda::BlockTeam>(n, [=](int64_t i) { return static_cast<double>(A(nll[rows[i]])); });
  if (threadIdx.x == 0) *loss = T(n > 0 ? static_cast<A>(sum / static_cast<double>(n)) : A(0));
}

// dlogits = (softmax - onehot) (dloss / n + dnll). A team per labelled row.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(CrossEntropyBwd<T> a) {
  using A = acc_t<T>;
  for (int64_t i = Team::first(); i < a.n; i += Team::step()) {
    const int64_t row = a.rows[i], target = a.targets[row];
    const T* const logits = a.logits + row * a.V;
    const A weight = (a.dloss ? A(*a.dloss) / A(a.n) : A(0)) + (a.dnll ? A(a.dnll[row]) : A(0));
    const A max = a.row_max[i], scale = a.inv_sum[i] * weight;
    for (int64_t j = Team::rank(); j < a.V; j += Team::kSize)
      a.dlogits[row * a.V + j] = T(std::exp(A(logits[j]) - max) * scale - (j == target ? weight : A(0)));
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const CrossEntropyFwd<T>& a) {
  cuda::set_bytes(cuda, a.argmax, 0xff, a.R * static_cast<int64_t>(sizeof(int32_t)));  // -1
  cuda::set_bytes(cuda, a.nll, 0, a.R * static_cast<int64_t>(sizeof(T)));
  cuda::launch_rows(cuda, a.n, a.V, forward<cuda::WarpTeam, T>, forward<cuda::BlockTeam, T>, a);
  cuda::launch(cuda, dim3(1), dim3(cuda::kThreads), mean_loss<T>, a.nll, a.rows, a.n, a.loss);
}

template <class T>
void run(Cuda cuda, const CrossEntropyBwd<T>& a) {
  // Rows without a label; the others are written again.
  if (a.n < a.R) cuda::set_bytes(cuda, a.dlogits, 0, a.R * a.V * static_cast<int64_t>(sizeof(T)));
  cuda::launch_rows(cuda, a.n, a.V, backward<cuda::WarpTeam, T>, backward<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const CrossEntropyFwd<float>&);
template void run(Cuda, const CrossEntropyFwd<double>&);
template void run(Cuda, const CrossEntropyFwd<bf16>&);
template void run(Cuda, const CrossEntropyBwd<float>&);
template void run(Cuda, const CrossEntropyBwd<double>&);
template void run(Cuda, const CrossEntropyBwd<bf16>&);

}  // namespace margay::kernels
