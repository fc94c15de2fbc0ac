#include "ops/linear.h"
#include "engine/parallel.h"

#include <type_traits>

#include "ops/cpu/parallel_gemm.h"
#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

constexpr int64_t kRowsPerBlock = 256;  // of dy, x and dx: what the second-level cache holds beside the weight

// out[j] = (first ? 0 : out[j]) + sum over rows of dy[r, j], for columns begin ... end.
template <class T>
void column_sums(const T* dy, int64_t rows, int64_t N, int64_t begin, int64_t end, bool first, T* out) {
  using Vec = simd::Vec<T>;
  int64_t j = begin;
  const auto vectors = [&]<int V>(std::integral_constant<int, V>) {
    for (; j + (V > 1 ? V * Vec::size : 1) <= end; j += V * Vec::size) {
      const int64_t n = end - j;
      Vec sum[V];
      for (int v = 0; v < V; ++v) sum[v] = first ? Vec(T(0)) : Vec::load(out + j + v * Vec::size, n);
      for (int64_t r = 0; r < rows; ++r)
        for (int v = 0; v < V; ++v) sum[v] += Vec::load(dy + r * N + j + v * Vec::size, n);
      for (int v = 0; v < V; ++v) sum[v].store(out + j + v * Vec::size, n);
    }
  };
  vectors(std::integral_constant<int, 4>());  // several sums at once, as each addition waits for the one before
  vectors(std::integral_constant<int, 1>());
}

// Each gradient by itself.
template <class T>
void separate(Cpu cpu, const LinearBwd<T>& a) {
  if (a.dx) {
    blas::parallel_gemm(cpu, false, false, a.rows, a.K, a.N, T(1), a.dy, a.N, a.weight, a.K, T(a.add_dx), a.dx, a.K,
                        a.precision);
  }
  if (a.dweight) {
    blas::parallel_gemm(cpu, true, false, a.N, a.K, a.rows, T(1), a.dy, a.N, a.x, a.K, T(a.add_dweight), a.dweight, a.K,
                        a.precision);
  }
  if (a.dbias) {
    parallel_ranges(cpu, a.N, 64, [&](int64_t begin, int64_t end) {
      column_sums(a.dy, a.rows, a.N, begin, end, !a.add_dbias, a.dbias);
    });
  }
}

// One group of rows: a block of dy, once in the cache, serves all gradients.
template <class T>
void group_gradients(const LinearBwd<T>& a, int64_t begin, int64_t end, T* dweight, T* dbias) {
  using blas::Rows;
  const Rows where = a.N * a.K > (1 << 17) ? Rows::distant : Rows::cached;  // dweight, between two blocks
  for (int64_t row = begin; row < end; row += kRowsPerBlock) {
    const int64_t rows = std::min(kRowsPerBlock, end - row);
    const T *x = a.x + row * a.K, *dy = a.dy + row * a.N;
    const bool first = row == begin;
    if (a.dx)
      blas::gemm(false, false, rows, a.K, a.N, T(1), dy, a.N, a.weight, a.K, T(a.add_dx), a.dx + row * a.K, a.K,
                 Rows::distant, a.precision);
    blas::gemm(true, false, a.N, a.K, rows, T(1), dy, a.N, x, a.K, first ? T(0) : T(1), dweight, a.K, where,
               a.precision);
    if (a.dbias) column_sums(dy, rows, a.N, 0, a.N, first, dbias);
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const LinearFwd<T>& a) {
  const blas::Blocks blocks(a.rows, a.N, a.K);
  parallel_for(cpu, blocks.count(), [&](int64_t index) {
    const auto [row, column, rows, columns] = blocks[index];
    blas::gemm_bias(rows, columns, a.K, a.x + row * a.K, a.K, a.weight + column * a.K, a.K,
                    a.bias ? a.bias + column : nullptr, a.y + row * a.N + column, a.N, blas::Rows::distant,
                    a.precision);
  });
}

// dx = dy W, dW = dy^T x, db = column sums of dy.
template <class T>
void run(Cpu cpu, const LinearBwd<T>& a) {
  const int64_t groups = a.groups(a.rows, a.N, a.K), size = a.N * a.K;
  if (groups == 1 || !a.dweight) return separate(cpu, a);
  T *const dweights = a.workspace, *const dbiases = a.workspace + groups * size;
  parallel_for(cpu, groups, [&](int64_t group) {
    group_gradients(a, group * a.rows / groups, (group + 1) * a.rows / groups, dweights + group * size,
                    dbiases + group * a.N);
  });
  blas::sum_parts(cpu, dweights, groups, size, size, a.add_dweight, a.dweight);
  if (a.dbias) blas::sum_parts(cpu, dbiases, groups, a.N, a.N, a.add_dbias, a.dbias);
}

template void run(Cpu, const LinearFwd<float>&);
template void run(Cpu, const LinearFwd<double>&);
template void run(Cpu, const LinearBwd<float>&);
template void run(Cpu, const LinearBwd<double>&);

}  // namespace margay::kernels
