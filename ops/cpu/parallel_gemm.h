#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/parallel.h"
#include "ops/cpu/blas.h"

// Products that are worth several threads. They are cut into pieces by shape only; each piece is one gemm on one
// thread.

namespace margay::blas {

/// The blocks of C [m, n] that a product of depth k is cut into.
struct Blocks {
  int64_t m, n, rows, columns;

  /// Blocks fit the second-level cache; where there would be few of them, they are made smaller as long as each is
  /// worth handing out. Fewer rows than kFewest cost no less: the other factor has to come from memory.
  Blocks(int64_t m, int64_t n, int64_t k)
      : m(m), n(n), rows(std::clamp<int64_t>(m, 1, 256)), columns(std::clamp<int64_t>(n, 1, 512)) {
    constexpr int64_t enough_blocks = 8, smallest_work = 1 << 20, kFewest = 16;
    while (count() < enough_blocks && std::max(rows, columns) > 32 &&
           std::max(rows, kFewest) * columns * k > smallest_work) {
      int64_t& larger = columns > rows ? columns : rows;
      larger = (larger / 2 + 31) / 32 * 32;
    }
  }
  int64_t column_blocks() const { return (n + columns - 1) / columns; }
  int64_t count() const { return (m + rows - 1) / rows * column_blocks(); }

  struct Block {
    int64_t row, column, rows, columns;
  };
  Block operator[](int64_t index) const {
    const int64_t row = index / column_blocks() * rows, column = index % column_blocks() * columns;
    return {row, column, std::min(rows, m - row), std::min(columns, n - column)};
  }
};

/// gemm() on several threads.
template <class T>
void parallel_gemm(Cpu cpu, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
                   int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc,
                   Precision precision = Precision::f32) {
  const Blocks blocks(m, n, k);
  parallel_for(cpu, blocks.count(), [&](int64_t index) {
    const auto [row, column, rows, columns] = blocks[index];
    gemm(trans_a, trans_b, rows, columns, k, alpha, a + (trans_a ? row : row * lda), lda,
         b + (trans_b ? column * ldb : column), ldb, beta, c + row * ldc + column, ldc, Rows::distant, precision);
  });
}

/// out[i] = sum over p of parts[p * stride + i], added in the order of p; to out[i] itself where `accumulate`.
template <class T>
void sum_parts(Cpu cpu, const T* parts, int64_t count, int64_t stride, int64_t size, bool accumulate, T* out) {
  parallel_ranges(cpu, size, 4096, [&](int64_t begin, int64_t end) {
    if (!accumulate) std::fill(out + begin, out + end, T(0));
    for (int64_t p = 0; p < count; ++p)
      for (int64_t i = begin; i < end; ++i) out[i] += parts[p * stride + i];
  });
}

/// C = op(A) op(B), added to C where `accumulate`, C [m, n] contiguous: for large k, which is cut into `pieces` that
/// are multiplied in parallel into the workspace [pieces, m, n] and then summed in order.
template <class T>
void split_k_gemm(Cpu cpu, int64_t pieces, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const T* a,
                  int64_t lda, const T* b, int64_t ldb, bool accumulate, T* c, T* workspace,
                  Precision precision = Precision::f32) {
  parallel_for(cpu, pieces, [&](int64_t piece) {
    const int64_t begin = piece * k / pieces, end = (piece + 1) * k / pieces;
    gemm(trans_a, trans_b, m, n, end - begin, T(1), a + (trans_a ? begin * lda : begin), lda,
         b + (trans_b ? begin : begin * ldb), ldb, T(0), workspace + piece * m * n, n, Rows::distant, precision);
  });
  sum_parts(cpu, workspace, pieces, m * n, m * n, accumulate, c);
}

}  // namespace margay::blas
