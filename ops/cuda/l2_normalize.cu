#include "ops/l2_normalize.h"

#include "ops/cuda/packed_rows.cuh"

namespace margay::kernels {
namespace {

// A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(L2NormalizeFwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const auto x = row.load(a.x + r * a.C);
    const A norm = std::sqrt(row.sum([](A x) { return x * x; }, x));
    constexpr A smallest = A(L2NormalizeFwd<T>::kSmallest);
    const A scale = 1 / (norm < smallest ? smallest : norm);
    if (row.rank() == 0) a.inv_norm[r] = norm < smallest ? A(0) : scale;
    row.write(
        a.y + r * a.C, [=](A x) { return x * scale; }, x);
  }
}

template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(L2NormalizeBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    T* const dx = a.dx + r * a.C;
    const auto y = row.load(a.y + r * a.C), dy = row.load(a.dy + r * a.C);
    const A dot = row.sum([](A y, A dy) { return y * dy; }, y, dy), inv_norm = a.inv_norm[r];
    const auto gradient = [=](A y, A dy, A before) { return (dy - y * dot) * inv_norm + before; };
    row.write(dx, gradient, y, dy, row.stream(a.accumulate ? dx : nullptr));
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const L2NormalizeFwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.y);
}

template <class T>
void run(Cuda cuda, const L2NormalizeBwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.y, a.dy, a.dx);
}

template void run(Cuda, const L2NormalizeFwd<float>&);
template void run(Cuda, const L2NormalizeFwd<double>&);
template void run(Cuda, const L2NormalizeFwd<bf16>&);
template void run(Cuda, const L2NormalizeBwd<float>&);
template void run(Cuda, const L2NormalizeBwd<double>&);
template void run(Cuda, const L2NormalizeBwd<bf16>&);

}  // namespace margay::kernels
