#include "ops/cross_entropy.h"

#include <limits>

#include "ops/cuda/packed_rows.cuh"

namespace margay::kernels {
namespace {

// The larger one; a number where there is one.
struct LargestNumber {
  template <class A>
  __device__ static A combine(A a, A b) {
    return b > a || a != a ? b : a;
  }
};

// A team per labelled row: the maximum with its first place, and the sum.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(CrossEntropyFwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.V);
  for (int64_t i = row.first(); i < a.n; i += row.step()) {
    const int64_t r = a.rows[i];
    const auto logits = row.load(a.logits + r * a.V);
    A top = -std::numeric_limits<A>::infinity();
    int64_t place = a.V;
    row.each([&](int p, auto j) {
      const auto pack = logits(p, j);
      for (int k = 0; k < Row::kPack; ++k) {
        const A logit(pack[k]);
        if (!(logit > top)) continue;
        top = logit;
        place = j + k;
      }
    });
    const A max = Row::Team::template reduce<LargestNumber>(top);
    place = Row::Team::template reduce<cuda::Smallest>(top == max ? place : a.V);
    const A sum = row.sum([=](A logit) { return std::exp(logit - max); }, logits);
    if (row.rank() > 0) continue;
    a.row_max[i] = max;
    a.inv_sum[i] = 1 / sum;
    a.argmax[r] = place < a.V ? static_cast<int32_t>(place) : 0;  // the first, where no logit is above -infinity
    a.nll[r] = T(max - A(a.logits[r * a.V + a.targets[r]]) + std::log(sum));
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
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(CrossEntropyBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.V);
  for (int64_t i = row.first(); i < a.n; i += row.step()) {
    const int64_t r = a.rows[i], target = a.targets[r];
    const auto logits = row.load(a.logits + r * a.V);
    const A weight = (a.dloss ? A(*a.dloss) / A(a.n) : A(0)) + (a.dnll ? A(a.dnll[r]) : A(0));
    const A max = a.row_max[i], scale = a.inv_sum[i] * weight;
    row.each([&](int p, auto j) {
      const auto pack = logits(p, j);
      cuda::Pack<T, Row::kPack> gradient;
      for (int k = 0; k < Row::kPack; ++k)
        gradient[k] = T(std::exp(A(pack[k]) - max) * scale - (j + k == target ? weight : A(0)));
      cuda::store(a.dlogits + r * a.V + j, gradient);
    });
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const CrossEntropyFwd<T>& a) {
  cuda::set_bytes(cuda, a.argmax, 0xff, a.R * static_cast<int64_t>(sizeof(int32_t)));  // -1
  cuda::set_bytes(cuda, a.nll, 0, a.R * static_cast<int64_t>(sizeof(T)));
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.n, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.V, launch, a.logits);
  cuda::launch(cuda, dim3(1), dim3(cuda::kThreads), mean_loss<T>, a.nll, a.rows, a.n, a.loss);
}

template <class T>
void run(Cuda cuda, const CrossEntropyBwd<T>& a) {
  // Rows without a label; the others are written again.
  if (a.n < a.R) cuda::set_bytes(cuda, a.dlogits, 0, a.R * a.V * static_cast<int64_t>(sizeof(T)));
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.n, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.V, launch, a.logits, a.dlogits);
}

template void run(Cuda, const CrossEntropyFwd<float>&);
template void run(Cuda, const CrossEntropyFwd<double>&);
template void run(Cuda, const CrossEntropyFwd<bf16>&);
template void run(Cuda, const CrossEntropyBwd<float>&);
template void run(Cuda, const CrossEntropyBwd<double>&);
template void run(Cuda, const CrossEntropyBwd<bf16>&);

}  // namespace margay::kernels
