#include "ops/layer_norm.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"

namespace margay::kernels {
namespace {

// x + residual into `sum`, where there is a residual; returns the total of the row.
template <class T>
T add_and_total(const T* x, const T* residual, T* sum, int64_t C) {
  using Vec = simd::Vec<T>;
  if (!residual) return pairwise_sum<T>(0, C, [x](int64_t i, int64_t n) { return Vec::load(x + i, n); });
  return pairwise_sum<T>(0, C, [=](int64_t i, int64_t n) {
    const Vec v = Vec::load(x + i, n) + Vec::load(residual + i, n);
    v.store(sum + i, n);
    return v;
  });
}

}  // namespace

template <class T>
void run(Cpu cpu, const LayerNormFwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    const int64_t C = a.C;
    const T *const weight = a.weight, *const bias = a.bias;
    for (int64_t row = begin; row < end; ++row) {
      const T* const residual = a.residual ? a.residual + row * C : nullptr;
      T* const sum = a.residual ? a.sum + row * C : nullptr;
      const T mean = add_and_total(a.x + row * C, residual, sum, C) / T(C);
      const T* const x = sum ? sum : a.x + row * C;
      const T squares = pairwise_sum<T>(0, C, [x, mean](int64_t i, int64_t n) {
        const Vec deviation = Vec::load(x + i, n, mean) - mean;
        return deviation * deviation;
      });
      const T inv_std = 1 / std::sqrt(squares / T(C) + T(a.eps));
      a.mean[row] = mean;
      a.inv_std[row] = inv_std;
      T* const y = a.y + row * C;
      for (int64_t i = 0; i < C; i += Vec::size) {
        const int64_t n = C - i;
        const Vec xhat = (Vec::load(x + i, n) - mean) * inv_std;
        (xhat * Vec::load(weight + i, n) + Vec::load(bias + i, n)).store(y + i, n);
      }
    }
  });
}

namespace {

// With xhat = (x - mean) inv_std and g = weight dy: dx = inv_std (g - mean(g) - xhat mean(g xhat)); dweight and dbias
// are the sums over rows of dy xhat and dy. Takes `count` rows together, so that the running sums of the parameters are
// read and written once for all of them.
template <int count, class T>
void pull_back_rows(const LayerNormBwd<T>& a, int64_t first, T* dweight, T* dbias) {
  using Vec = simd::Vec<T>;
  const auto xhat = [&](int row, int64_t i, int64_t n) {
    return (Vec::load(a.x + (first + row) * a.C + i, n) - a.mean[first + row]) * a.inv_std[first + row];
  };
  const auto dy = [&](int row, int64_t i, int64_t n) { return Vec::load(a.dy + (first + row) * a.C + i, n); };
  Vec sums[count], dots[count];
  for (int row = 0; row < count; ++row) sums[row] = dots[row] = Vec(T(0));
  for (int64_t i = 0; i < a.C; i += Vec::size) {
    const int64_t n = a.C - i;
    const Vec weight = Vec::load(a.weight + i, n);
    Vec dw = Vec::load(dweight + i, n), db = Vec::load(dbias + i, n);
    for (int row = 0; row < count; ++row) {
      const Vec cotangent = dy(row, i, n), product = cotangent * xhat(row, i, n);
      db += cotangent;
      dw += product;
      sums[row] += cotangent * weight;
      dots[row] += product * weight;
    }
    dw.store(dweight + i, n);
    db.store(dbias + i, n);
  }
  if (!a.dx) return;
  for (int row = 0; row < count; ++row) {
    const T mean_g = reduce_add(sums[row]) / T(a.C), mean_dot = reduce_add(dots[row]) / T(a.C);
    const int64_t start = (first + row) * a.C;
    for (int64_t i = 0; i < a.C; i += Vec::size) {
      const int64_t n = a.C - i;
      const Vec g = dy(row, i, n) * Vec::load(a.weight + i, n);
      Vec dx = (g - mean_g - xhat(row, i, n) * mean_dot) * a.inv_std[first + row];
      if (a.dresidual) dx += Vec::load(a.dresidual + start + i, n);
      dx.store(a.dx + start + i, n);
    }
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const LayerNormBwd<T>& a) {
  const int64_t pieces = a.pieces(a.rows);
  parallel_for(cpu, pieces, [&](int64_t piece) {
    T *const dweight = a.workspace + piece * 2 * a.C, *const dbias = dweight + a.C;
    std::fill_n(dweight, 2 * a.C, T(0));
    int64_t row = piece * a.kRowsPerPiece;
    const int64_t end = std::min(a.rows, row + a.kRowsPerPiece);
    for (; row + 4 <= end; row += 4) pull_back_rows<4>(a, row, dweight, dbias);
    for (; row < end; ++row) pull_back_rows<1>(a, row, dweight, dbias);
  });
  if (!a.dweight) return;
  std::fill_n(a.dweight, a.C, T(0));
  std::fill_n(a.dbias, a.C, T(0));
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const T* const sums = a.workspace + piece * 2 * a.C;
    for (int64_t c = 0; c < a.C; ++c) a.dweight[c] += sums[c];
    for (int64_t c = 0; c < a.C; ++c) a.dbias[c] += sums[a.C + c];
  }
}

template void run(Cpu, const LayerNormFwd<float>&);
template void run(Cpu, const LayerNormFwd<double>&);
template void run(Cpu, const LayerNormBwd<float>&);
template void run(Cpu, const LayerNormBwd<double>&);

}  // namespace margay::kernels
