#include "ops/rms_norm_gated.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/packed_rows.cuh"
#include "ops/unary_functors.h"

namespace margay::kernels {
namespace {

// A team per row; u = x silu(z) is computed again rather than stored.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(RmsNormGatedFwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const auto x = row.load(a.x + r * a.C), z = row.load(a.z + r * a.C);
    const auto u = [](A x, A z) { return x * functors::Silu::value(z); };
    const auto square = [=](A x, A z) {
      const A value = u(x, z);
      return value * value;
    };
    const A inv_rms = 1 / std::sqrt(row.sum(square, x, z) / A(a.C) + A(a.eps));
    if (row.rank() == 0) a.inv_rms[r] = inv_rms;
    const auto y = [=](A x, A z, A weight) { return u(x, z) * inv_rms * weight; };
    row.write(a.y + r * a.C, y, x, z, row.stream(a.weight));
  }
}

// With s = inv_rms, uhat = s u and g = weight dy: du = s (g - uhat mean(g uhat)), dx = du silu(z), dz = du x silu'(z).
// A team per row.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(RmsNormGatedBwd<T> a) {
  using A = acc_t<T>;
  const Row row(a.C);
  for (int64_t r = row.first(); r < a.rows; r += row.step()) {
    const int64_t start = r * a.C;
    const auto x = row.load(a.x + start), z = row.load(a.z + start), dy = row.load(a.dy + start);
    const auto weight = row.stream(a.weight);
    const A s = a.inv_rms[r];
    const auto term = [=](A x, A z, A dy, A weight) { return dy * weight * (x * functors::Silu::value(z) * s); };
    const A mean = row.sum(term, x, z, dy, weight) / A(a.C);
    row.each([&](int p, auto i) {
      const auto xs = x(p, i), zs = z(p, i), dys = dy(p, i), weights = weight(p, i);
      cuda::Pack<T, Row::kPack> dx, dz;
      for (int k = 0; k < Row::kPack; ++k) {
        const A x(xs[k]), z(zs[k]), silu = functors::Silu::value(z);
        const A du = (A(dys[k]) * A(weights[k]) - x * silu * (s * mean)) * s;
        dx[k] = T(du * silu);
        dz[k] = T(du * x * functors::Silu::derivative(z, silu));
      }
      cuda::store(a.dx + start + i, dx);
      cuda::store(a.dz + start + i, dz);
    });
  }
}

// What a row adds to dweight: dy uhat.
template <class T>
struct WeightTerm {
  RmsNormGatedBwd<T> a;
  template <int N>
  __device__ void operator()(int64_t row, int64_t c, cuda::Pack<acc_t<T>, N> (&values)[1]) const {
    using A = acc_t<T>;
    const int64_t at = row * a.C + c;
    const auto term = [s = a.inv_rms[row]](T dy, T x, T z) { return A(dy) * (A(x) * functors::Silu::value(A(z)) * s); };
    values[0] = cuda::map(term, cuda::load<N>(a.dy + at), cuda::load<N>(a.x + at), cuda::load<N>(a.z + at));
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const RmsNormGatedFwd<T>& a) {
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, forward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.z, a.weight, a.y);
}

template <class T>
void run(Cuda cuda, const RmsNormGatedBwd<T>& a) {
  const cuda::ColumnTotals<1, T> totals{{a.dweight}};
  cuda::sum_columns(cuda, WeightTerm<T>{a}, a.rows, a.C, a.kRowsPerPiece, a.workspace, totals, {a.x, a.z, a.dy});
  const auto launch = [&]<class Row>() { Row::launch(cuda, a.rows, backward<Row, T>, a); };
  cuda::with_packed_rows<T>(a.C, launch, a.x, a.z, a.weight, a.dy, a.dx, a.dz);
}

template void run(Cuda, const RmsNormGatedFwd<float>&);
template void run(Cuda, const RmsNormGatedFwd<double>&);
template void run(Cuda, const RmsNormGatedFwd<bf16>&);
template void run(Cuda, const RmsNormGatedBwd<float>&);
template void run(Cuda, const RmsNormGatedBwd<double>&);
template void run(Cuda, const RmsNormGatedBwd<bf16>&);

}  // namespace margay::kernels
