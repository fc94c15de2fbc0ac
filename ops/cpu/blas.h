#pragma once
#include <cstdint>

#include "ops/precision.h"

// Matrix products of CPU kernels. All matrices are row-major; ld is the distance of rows in elements. Every call runs
// on the calling thread alone, and may be made from several threads at once.

namespace margay::blas {

/// Where the rows of A and C are: in the caches, or so far away that the product should ask for them ahead.
enum class Rows : uint8_t { cached, distant };

/// C = alpha * op(A) op(B) + beta * C, where op transposes if the flag says so: op(A) is [m, k], op(B) [k, n], C [m,
/// n]. C is not read where beta is 0, nor A and B where alpha or k is 0. C must not overlap A or B. `precision` is that
/// of products of floats; doubles are never rounded.
template <class T>
void gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda, const T* b,
          int64_t ldb, T beta, T* c, int64_t ldc, Rows rows = Rows::cached, Precision precision = Precision::f32);

/// C = A B^T + bias in every row: A [m, k], B [n, k], bias [n] or null, C [m, n].
template <class T>
void gemm_bias(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, const T* bias, T* c,
               int64_t ldc, Rows rows = Rows::cached, Precision precision = Precision::f32);

}  // namespace margay::blas
