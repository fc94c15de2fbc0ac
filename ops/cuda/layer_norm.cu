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
  __device__ void operator()(int64_t row, int64_t c, acc_t<T> (&values)[2]) const {
    using A = acc_t<T>;
    const A dy(a.dy[row * a.C + c]);
    values[0] = dy * ((A(a.x[row * a.C + c]) - a.mean[row]) * a.inv_std[row]);
    values[1] = dy;
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
  if (a.dweight)
    cuda::sum_columns<2>(cuda, ParameterTerms<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, {a.dweight, a.dbias});
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
