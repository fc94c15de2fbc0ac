#include "ops/cpu/blas.h"

#include <algorithm>
#include <type_traits>

#include "engine/flop_counter.h"

#ifdef MARGAY_OPENBLAS
#include <cblas.h>
#else
#pragma GCC diagnostic push  // GCC 12 warns about its own intrinsics where Eigen uses them
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <Eigen/Core>
#pragma GCC diagnostic pop
#endif

#include "ops/cpu/bf16_gemm.h"
#include "ops/cpu/few_rows.h"
#include "ops/cpu/gemm_kernel.h"

namespace margay::blas {
namespace {

#ifdef MARGAY_OPENBLAS

// Products are cut into pieces by the callers; threads of the library's own would only get into each other's way.
void library_on_one_thread() {
  [[maybe_unused]] static const bool once = [] {
    openblas_set_num_threads(1);
    return true;
  }();
}

CBLAS_TRANSPOSE flag(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

void library_gemm(bool trans_a, bool trans_b, const Product<float>& p) {
  library_on_one_thread();
  cblas_sgemm(CblasRowMajor, flag(trans_a), flag(trans_b), static_cast<blasint>(p.m), static_cast<blasint>(p.n),
              static_cast<blasint>(p.k), p.alpha, p.a, static_cast<blasint>(p.lda), p.b, static_cast<blasint>(p.ldb),
              p.start.scale, p.c, static_cast<blasint>(p.ldc));
}
void library_gemm(bool trans_a, bool trans_b, const Product<double>& p) {
  library_on_one_thread();
  cblas_dgemm(CblasRowMajor, flag(trans_a), flag(trans_b), static_cast<blasint>(p.m), static_cast<blasint>(p.n),
              static_cast<blasint>(p.k), p.alpha, p.a, static_cast<blasint>(p.lda), p.b, static_cast<blasint>(p.ldb),
              p.start.scale, p.c, static_cast<blasint>(p.ldc));
}

#else

template <class T>
void library_gemm(bool trans_a, bool trans_b, const Product<T>& p) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Stride = Eigen::OuterStride<>;
  const auto view = [](bool transposed, const T* data, int64_t rows, int64_t columns, int64_t ld) {
    if (transposed) std::swap(rows, columns);
    return Eigen::Map<const Matrix, Eigen::Unaligned, Stride>(data, rows, columns, Stride(ld));
  };
  const auto a = view(trans_a, p.a, p.m, p.k, p.lda), b = view(trans_b, p.b, p.k, p.n, p.ldb);
  Eigen::Map<Matrix, Eigen::Unaligned, Stride> c(p.c, p.m, p.n, Stride(p.ldc));
  if (p.start.scale == T(0)) c.setZero();
  if (p.start.scale != T(0) && p.start.scale != T(1)) c *= p.start.scale;
  if (trans_a && trans_b) {
    c.noalias() += p.alpha * (a.transpose() * b.transpose());
  } else if (trans_a) {
    c.noalias() += p.alpha * (a.transpose() * b);
  } else if (trans_b) {
    c.noalias() += p.alpha * (a * b.transpose());
  } else {
    c.noalias() += p.alpha * (a * b);
  }
}

#endif

template <class T>
void scale(int64_t m, int64_t n, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == T(0) ? T(0) : c[i * ldc + j] * beta;
}

// A panel of B has to serve several rows before packing it pays; beyond the blocks of `multiply`, a library's packing
// of both factors wins.
bool in_tiles(int64_t m, int64_t n, int64_t k) {
  return kFastTiles && m >= kTileRows && (m <= 512 || n <= 512 || k <= 512);
}

// Sums of a few registers take longer to finish than to make.
bool has_few_rows(int64_t m, int64_t k) { return m <= kFewRows && k >= 128; }

template <class T>
void in_tiles(bool trans_a, bool trans_b, const Product<T>& p) {
  if (trans_a) {
    trans_b ? multiply<T, true, true>(p) : multiply<T, true, false>(p);
  } else {
    trans_b ? multiply<T, false, true>(p) : multiply<T, false, false>(p);
  }
}

// Rounding and packing the factors has to be outweighed by the products that use them.
template <class T>
bool in_bf16(Precision precision, int64_t m, int64_t n, int64_t k) {
  if (!std::is_same_v<T, float> || precision != Precision::bf16) return false;
  return m > kFewRows && k >= 16 && m * n * k >= (1 << 15) && bf16_unit() != Bf16Unit::none;
}

// A product that is not empty, where it is fastest.
template <class T>
void dispatch(bool trans_a, bool trans_b, const Product<T>& p, Precision precision) {
  FlopCounter::add(2 * p.m * p.n * p.k);
  if constexpr (std::is_same_v<T, float>)
    if (in_bf16<T>(precision, p.m, p.n, p.k)) return bf16_multiply(bf16_unit(), trans_a, trans_b, p);
  if (has_few_rows(p.m, p.k) && !trans_a && trans_b) return few_rows(p);
  in_tiles(p.m, p.n, p.k) ? in_tiles(trans_a, trans_b, p) : library_gemm(trans_a, trans_b, p);
}

}  // namespace

template <class T>
void gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda, const T* b,
          int64_t ldb, T beta, T* c, int64_t ldc, Rows rows, Precision precision) {
  if (m == 0 || n == 0) return;
  const bool fetch = rows == Rows::distant;
  if (k == 0 || alpha == T(0)) return scale(m, n, beta, c, ldc);
  dispatch<T>(trans_a, trans_b, {m, n, k, alpha, a, lda, b, ldb, {c, ldc, beta}, c, ldc, fetch, fetch}, precision);
}

template <class T>
void gemm_bias(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, const T* bias, T* c,
               int64_t ldc, Rows rows, Precision precision) {
  const bool fetch = rows == Rows::distant;
  const bool starts_anywhere = in_bf16<T>(precision, m, n, k) || has_few_rows(m, k) || in_tiles(m, n, k);
  if (bias && m > 0 && n > 0 && k > 0 && starts_anywhere)
    return dispatch<T>(false, true, {m, n, k, T(1), a, lda, b, ldb, {bias, 0, T(1)}, c, ldc, fetch, fetch}, precision);
  if (bias)
    for (int64_t i = 0; i < m; ++i) std::copy_n(bias, n, c + i * ldc);
  gemm<T>(false, true, m, n, k, T(1), a, lda, b, ldb, bias ? T(1) : T(0), c, ldc, rows, precision);
}

template void gemm(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                   float*, int64_t, Rows, Precision);
template void gemm(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t, const double*, int64_t,
                   double, double*, int64_t, Rows, Precision);
template void gemm_bias(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, const float*, float*,
                        int64_t, Rows, Precision);
template void gemm_bias(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, const double*,
                        double*, int64_t, Rows, Precision);

}  // namespace margay::blas
