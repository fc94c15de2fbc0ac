#include "ops/softmax.h"

#include <limits>

#include "ops/cuda/packed_rows.cuh"

namespace margay::kernels {
namespace {

// A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(SoftmaxFwd<T> a) {
  using A = acc_t<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const auto x = row.load(a.x + r * a.C);
    const auto mask = row.stream(a.mask ? a.mask + r % a.mask_rows * a.C : nullptr);
    const auto logit = [](A x, bool masked) { return masked ? lowest : x; };
    const A largest = row.template reduce<cuda::Largest>(lowest, logit, x, mask);
    const bool all_masked = a.mask && row.sum([](bool masked) { return int{!masked}; }, mask) == 0;
    const auto weight = [=](A x, bool masked) { return std::exp(logit(x, masked) - largest); };
    const A total = row.sum(weight, x, mask);
    const A scale = 1 / total, log_total = a.log ? std::log(total) : A(0);
    const auto y = [=, log = a.log](A x, bool masked) {
      const A value = log ? logit(x, masked) - largest - log_total : weight(x, masked) * scale;
      return all_masked ? A(0) : value;
    };
    row.write(a.y + r * a.C, y, x, mask);
  }
}

template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(SoftmaxBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    T* const dx = a.dx + r * a.C;
    const auto y = row.load(a.y + r * a.C), dy = row.load(a.dy + r * a.C);
    const A total = row.sum([log = a.log](A y, A dy) { return log ? dy : dy * y; }, y, dy);
    const auto gradient = [=, log = a.log](A y, A dy, A before) {
      return (log ? dy - std::exp(y) * total : y * (dy - total)) + before;
    };
    row.write(dx, gradient, y, dy, row.stream(a.accumulate ? dx : nullptr));
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const SoftmaxFwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.mask, a.y);
}

template <class T>
void run(Cuda cuda, const SoftmaxBwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.y, a.dy, a.dx);
}

template void run(Cuda, const SoftmaxFwd<float>&);
template void run(Cuda, const SoftmaxFwd<double>&);
template void run(Cuda, const SoftmaxFwd<bf16>&);
template void run(Cuda, const SoftmaxBwd<float>&);
template void run(Cuda, const SoftmaxBwd<double>&);
template void run(Cuda, const SoftmaxBwd<bf16>&);

}  // namespace margay::kernels
