#include "ops/layer_norm.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/packed_rows.cuh"

namespace margay::kernels {
namespace {

// A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(LayerNormFwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const int64_t start = r * a.C;
    // A sum whose row is too long to be kept is made again in every pass.
    const auto x = row.values([=](int64_t i) {
      constexpr int N = Row::kPack;
      const auto input = cuda::load<N>(a.x + start + i);
      if (!a.residual) return input;
      const auto add = [](T x, T residual) { return T(A(x) + A(residual)); };
      const auto sum = cuda::map(add, input, cuda::load<N>(a.residual + start + i));
      cuda::store(a.sum + start + i, sum);
      return sum;
    });
    const A mean = row.sum([](A x) { return x; }, x) / A(a.C);
    const A squares = row.sum([=](A x) { return (x - mean) * (x - mean); }, x);
    const A inv_std = 1 / std::sqrt(squares / A(a.C) + A(a.eps));
    if (row.rank() == 0) {
      a.mean[r] = mean;
      a.inv_std[r] = inv_std;
    }
    const auto y = [=](A x, A weight, A bias) { return (x - mean) * inv_std * weight + bias; };
    row.write(a.y + start, y, x, row.stream(a.weight), row.stream(a.bias));
  }
}

// With xhat = (x - mean) inv_std and g = weight dy: dx = inv_std (g - mean(g) - xhat mean(g xhat)). A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(LayerNormBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const int64_t start = r * a.C;
    const auto x = row.load(a.x + start), dy = row.load(a.dy + start);
    const auto weight = row.stream(a.weight), dresidual = row.stream(a.dresidual ? a.dresidual + start : nullptr);
    const A mean = a.mean[r], inv_std = a.inv_std[r];
    const A mean_g = row.sum([](A dy, A weight) { return dy * weight; }, dy, weight) / A(a.C);
    const auto term = [=](A x, A dy, A weight) { return dy * weight * ((x - mean) * inv_std); };
    const A mean_dot = row.sum(term, x, dy, weight) / A(a.C);
    const auto dx = [=](A x, A dy, A weight, A dresidual) {
      return (dy * weight - mean_g - (x - mean) * inv_std * mean_dot) * inv_std + dresidual;
    };
    row.write(a.dx + start, dx, x, dy, weight, dresidual);
  }
}

// What a row adds to dweight and dbias: dy xhat and dy.
template <class T>
struct ParameterTerms {
  LayerNormBwd<T> a;
  template <int N>
  __device__ void operator()(int64_t row, int64_t c, cuda::Pack<acc_t<T>, N> (&values)[2]) const {
    using A = acc_t<T>;
    const int64_t at = row * a.C + c;
    const auto dy = cuda::load<N>(a.dy + at);
    const auto term = [mean = a.mean[row], inv_std = a.inv_std[row]](T dy, T x) {
      return A(dy) * ((A(x) - mean) * inv_std);
    };
    values[0] = cuda::map(term, dy, cuda::load<N>(a.x + at));
    values[1] = cuda::map([](T dy) { return A(dy); }, dy);
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const LayerNormFwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.residual, a.weight, a.bias, a.sum, a.y);
}

template <class T>
void run(Cuda cuda, const LayerNormBwd<T>& a) {
  if (a.dweight) {
    const cuda::ColumnTotals<2, T> totals{{a.dweight, a.dbias}};
    cuda::sum_columns(cuda, ParameterTerms<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, totals, {a.x, a.dy});
  }
  if (!a.dx) return;
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.weight, a.dy, a.dresidual, a.dx);
}

template void run(Cuda, const LayerNormFwd<float>&);
template void run(Cuda, const LayerNormFwd<double>&);
template void run(Cuda, const LayerNormFwd<bf16>&);
template void run(Cuda, const LayerNormBwd<float>&);
template void run(Cuda, const LayerNormBwd<double>&);
template void run(Cuda, const LayerNormBwd<bf16>&);

}  // namespace margay::kernels
