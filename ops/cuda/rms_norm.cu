#include "ops/rms_norm.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/packed_rows.cuh"

namespace margay::kernels {
namespace {

// A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(RmsNormFwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const auto x = row.load(a.x + r * a.C);
    const A squares = row.sum([](A x) { return x * x; }, x);
    const A inv_rms = 1 / std::sqrt(squares / A(a.C) + A(a.eps));
    if (row.rank() == 0) a.inv_rms[r] = inv_rms;
    row.write(
        a.y + r * a.C, [=](A x, A weight) { return x * inv_rms * weight; }, x, row.stream(a.weight));
  }
}

// With s = inv_rms, xhat = s x and g = weight dy: dx = s (g - xhat mean(g xhat)). A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(RmsNormBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const auto x = row.load(a.x + r * a.C), dy = row.load(a.dy + r * a.C);
    const auto weight = row.stream(a.weight);
    const A s = a.inv_rms[r];
    const A mean = row.sum([=](A x, A dy, A weight) { return dy * weight * (x * s); }, x, dy, weight) / A(a.C);
    const auto dx = [=](A x, A dy, A weight) { return (dy * weight - x * s * mean) * s; };
    row.write(a.dx + r * a.C, dx, x, dy, weight);
  }
}

// What a row adds to dweight: dy xhat.
template <class T>
struct WeightTerm {
  RmsNormBwd<T> a;
  template <int N>
  __device__ void operator()(int64_t row, int64_t c, cuda::Pack<acc_t<T>, N> (&values)[1]) const {
    using A = acc_t<T>;
    const int64_t at = row * a.C + c;
    const auto term = [s = a.inv_rms[row]](T dy, T x) { return A(dy) * (A(x) * s); };
    values[0] = cuda::map(term, cuda::load<N>(a.dy + at), cuda::load<N>(a.x + at));
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const RmsNormFwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.weight, a.y);
}

template <class T>
void run(Cuda cuda, const RmsNormBwd<T>& a) {
  const cuda::ColumnTotals<1, T> totals{{a.dweight}};
  cuda::sum_columns(cuda, WeightTerm<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, totals, {a.x, a.dy});
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.weight, a.dy, a.dx);
}

template void run(Cuda, const RmsNormFwd<float>&);
template void run(Cuda, const RmsNormFwd<double>&);
template void run(Cuda, const RmsNormFwd<bf16>&);
template void run(Cuda, const RmsNormBwd<float>&);
template void run(Cuda, const RmsNormBwd<double>&);
template void run(Cuda, const RmsNormBwd<bf16>&);

}  // namespace margay::kernels
