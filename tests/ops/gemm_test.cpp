// Products of the CPU kernels against plain loops in double.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/parallel.h"
#include "engine/rng.h"
#include "ops/cpu/bf16_gemm.h"
#include "ops/cpu/parallel_gemm.h"

namespace margay::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A matrix inside a larger block whose other elements are NaN: reading them would show.
template <class T>
struct Matrix {
  int64_t rows, columns, ld;
  std::vector<T> data;

  Matrix(int64_t rows, int64_t columns, int64_t padding, uint64_t seed)
      : rows(rows), columns(columns), ld(columns + padding), data(static_cast<size_t>(rows * ld), T(kNan)) {
    RandomStream random(seed, hash_name("gemm_test"));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) at(i, j) = static_cast<T>(2 * random.uniform64() - 1);
  }
  T& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * ld + j)]; }
  T at(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * ld + j)]; }
};

struct Case {
  bool trans_a, trans_b;
  int64_t m, n, k;
  double alpha, beta;
};

template <class T>
std::string wrong_element(const Case& c, const Matrix<T>& a, const Matrix<T>& b, const Matrix<T>& before,
                          const Matrix<T>& after) {
  const double tolerance = (std::is_same_v<T, float> ? 1e-6 : 1e-14) * static_cast<double>(8 + c.k);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < c.k; ++p)
        sum += static_cast<double>(c.trans_a ? a.at(p, i) : a.at(i, p)) *
               static_cast<double>(c.trans_b ? b.at(j, p) : b.at(p, j));
      double expected = c.alpha * sum;
      if (c.beta != 0) expected += c.beta * static_cast<double>(before.at(i, j));
      if (!(std::abs(static_cast<double>(after.at(i, j)) - expected) <= tolerance))
        return fmt::format("[{},{}]: {}, expected {}", i, j, after.at(i, j), expected);
    }
    for (int64_t j = c.n; j < after.ld; ++j)
      if (!std::isnan(after.at(i, j))) return fmt::format("wrote behind the end of row {}", i);
  }
  return {};
}

// Makes the factors of a case and what it adds to, calls multiply(a, b, c), and compares. `seen` is what the product
// sees of a factor.
template <class T, class Multiply, class Seen>
void check_product(const Case& c, const Multiply& multiply, const Seen& seen) {
  CAPTURE(c.trans_a);
  CAPTURE(c.trans_b);
  CAPTURE(c.m);
  CAPTURE(c.n);
  CAPTURE(c.k);
  CAPTURE(c.beta);
  const Matrix<T> a(c.trans_a ? c.k : c.m, c.trans_a ? c.m : c.k, 3, 1);
  const Matrix<T> b(c.trans_b ? c.n : c.k, c.trans_b ? c.k : c.n, 5, 2);
  Matrix<T> before(c.m, c.n, 7, 3);
  if (c.beta == 0) std::fill(before.data.begin(), before.data.end(), T(kNan));  // not initialised
  Matrix<T> after = before;
  multiply(a, b, after);
  CHECK(wrong_element(c, seen(a), seen(b), before, after) == "");
}

template <class T>
void check(const Case& c) {
  const auto multiply = [&](const Matrix<T>& a, const Matrix<T>& b, Matrix<T>& out) {
    blas::gemm(c.trans_a, c.trans_b, c.m, c.n, c.k, T(c.alpha), a.data.data(), a.ld, b.data.data(), b.ld, T(c.beta),
               out.data.data(), out.ld);
  };
  check_product<T>(c, multiply, [](const Matrix<T>& factor) { return factor; });
}

void check_all_forms(int64_t m, int64_t n, int64_t k, double alpha, double beta) {
  for (const bool trans_a : {false, true}) {
    for (const bool trans_b : {false, true}) {
      check<float>({trans_a, trans_b, m, n, k, alpha, beta});
      check<double>({trans_a, trans_b, m, n, k, alpha, beta});
    }
  }
}

// To the nearest bf16, ties to even.
float rounded(float value) {
  if (std::isnan(value)) return value;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}
Matrix<float> rounded(Matrix<float> matrix) {
  for (float& value : matrix.data) value = rounded(value);
  return matrix;
}

// The ways this CPU has to multiply bf16.
std::vector<blas::Bf16Unit> bf16_units() {
  std::vector<blas::Bf16Unit> units;
  for (const auto unit : {blas::Bf16Unit::avx512, blas::Bf16Unit::amx})
    if (unit <= blas::bf16_unit()) units.push_back(unit);
  if (units.empty()) MESSAGE("skipped: this CPU does not multiply bf16");
  return units;
}

void check_bf16(blas::Bf16Unit unit, const Case& c) {
  CAPTURE(static_cast<int>(unit));
  const auto multiply = [&](const Matrix<float>& a, const Matrix<float>& b, Matrix<float>& out) {
    float* const to = out.data.data();
    const blas::Addend<float> start{to, out.ld, static_cast<float>(c.beta)};
    const bool fetch_c = c.m > 100;
    blas::bf16_multiply(unit, c.trans_a, c.trans_b,
                        {c.m, c.n, c.k, static_cast<float>(c.alpha), a.data.data(), a.ld, b.data.data(), b.ld, start,
                         to, out.ld, false, fetch_c});
  };
  check_product<float>(c, multiply, [](const Matrix<float>& factor) { return rounded(factor); });
}

void check_bf16_forms(int64_t m, int64_t n, int64_t k, double alpha, double beta) {
  for (const blas::Bf16Unit unit : bf16_units())
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true}) check_bf16(unit, {trans_a, trans_b, m, n, k, alpha, beta});
}

}  // namespace

TEST_CASE("gemm: sizes around the edges of its tiles") {
  for (const int64_t m : {1, 3, 8, 13, 33})
    for (const int64_t n : {1, 15, 16, 17, 32, 50})
      for (const int64_t k : {1, 16, 29}) check_all_forms(m, n, k, 1, 0);
}

TEST_CASE("gemm: more than one block along each axis") {
  check_all_forms(300, 40, 20, 1, 1);
  check_all_forms(20, 600, 20, 1, 0);
  check_all_forms(20, 40, 300, 1, 1);
  check<float>({false, true, 520, 530, 540, 1, 0});
}

TEST_CASE("gemm: few rows") {
  for (int64_t m = 1; m <= 9; ++m)
    for (const int64_t n : {1, 3, 16, 37})
      for (const int64_t k : {128, 141}) check_all_forms(m, n, k, -1.5, m % 2 == 0 ? 0 : 0.5);
}

TEST_CASE("gemm: one of a few rows has the same bits by itself") {
  constexpr int64_t m = 7, n = 21, k = 150;
  const Matrix<float> a(m, k, 1, 4), b(n, k, 2, 5);
  std::vector<float> all(m * n), alone(n);
  blas::gemm_bias<float>(m, n, k, a.data.data(), a.ld, b.data.data(), b.ld, nullptr, all.data(), n);
  for (int64_t i = 0; i < m; ++i) {
    blas::gemm_bias<float>(1, n, k, a.data.data() + i * a.ld, a.ld, b.data.data(), b.ld, nullptr, alone.data(), n);
    CHECK(std::equal(alone.begin(), alone.end(), all.begin() + i * n));
  }
}

TEST_CASE("gemm: alpha and beta") {
  for (const double beta : {0.0, 1.0, -0.5}) {
    check_all_forms(9, 35, 7, -2, beta);
    check_all_forms(2, 5, 140, 0.5, beta);
  }
}

TEST_CASE("gemm: empty sums scale or clear C, empty products do nothing") {
  for (const double beta : {0.0, 1.0, 2.0}) {
    check_all_forms(3, 4, 0, 1, beta);
    check_all_forms(0, 4, 3, 1, beta);
    check_all_forms(4, 0, 3, 1, beta);
    check_all_forms(3, 4, 5, 0, beta);
  }
}

TEST_CASE("gemm: alpha = 0 reads neither A nor B") {
  const std::vector<float> nan(64, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> c(64, 3.0f);
  blas::gemm(false, false, 8, 8, 8, 0.0f, nan.data(), 8, nan.data(), 8, 1.0f, c.data(), 8);
  CHECK(c == std::vector<float>(64, 3.0f));
}

TEST_CASE("gemm: NaN and infinity in the factors reach the result") {
  std::vector<float> a(16 * 16, 1.0f), c(16 * 16);
  const std::vector<float> b(16 * 16, 0.0f);
  a[16 * 3 + 5] = std::numeric_limits<float>::quiet_NaN();
  a[16 * 4 + 2] = std::numeric_limits<float>::infinity();
  blas::gemm(false, false, 16, 16, 16, 1.0f, a.data(), 16, b.data(), 16, 0.0f, c.data(), 16);
  CHECK(std::isnan(c[16 * 3]));
  CHECK(std::isnan(c[16 * 4]));  // infinity * 0
  CHECK(c[16 * 5] == 0);
}

TEST_CASE("gemm_bias: every row starts from the bias") {
  for (const int64_t m : {1, 6, 9, 70}) {
    for (const int64_t k : {0, 5, 150}) {
      CAPTURE(m);
      CAPTURE(k);
      const int64_t n = 37;
      const Matrix<float> a(m, k, 1, 4), b(n, k, 2, 5), bias(1, n, 0, 6);
      Matrix<float> rows(m, n, 3, 7), product = rows;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) rows.at(i, j) = bias.at(0, j);
      blas::gemm_bias(m, n, k, a.data.data(), a.ld, b.data.data(), b.ld, bias.data.data(), product.data.data(),
                      product.ld);
      CHECK(wrong_element({false, true, m, n, k, 1, 1}, a, b, rows, product) == "");
      blas::gemm_bias<float>(m, n, k, a.data.data(), a.ld, b.data.data(), b.ld, nullptr, product.data.data(),
                             product.ld);
      CHECK(wrong_element({false, true, m, n, k, 1, 0}, a, b, rows, product) == "");
    }
  }
}

TEST_CASE("gemm: the same bits when several threads call at once") {
  const Matrix<float> a(60, 70, 0, 8), b(50, 70, 0, 9);
  const auto multiply = [&](std::vector<float>& c) {
    blas::gemm(false, true, 60, 50, 70, 1.0f, a.data.data(), a.ld, b.data.data(), b.ld, 0.0f, c.data(), 50);
    blas::gemm(false, true, 2, 50, 70, 1.0f, a.data.data(), a.ld, b.data.data(), b.ld, 1.0f, c.data(), 50);
  };
  std::vector<float> expected(60 * 50);
  multiply(expected);
  std::vector<std::vector<float>> results(32, std::vector<float>(60 * 50));
  parallel_for(Cpu{4}, 32, [&](int64_t i) { multiply(results[static_cast<size_t>(i)]); });
  for (const std::vector<float>& result : results) CHECK(result == expected);
}

TEST_CASE("parallel_gemm and split_k_gemm equal the plain product") {
  const int64_t m = 70, n = 45, k = 1500;
  const Matrix<double> a(k, m, 0, 10), b(k, n, 0, 11);
  Matrix<double> c(m, n, 0, 12);
  const Matrix<double> before = c;
  blas::parallel_gemm(Cpu{3}, true, false, m, n, k, 1.0, a.data.data(), a.ld, b.data.data(), b.ld, 1.0, c.data.data(),
                      c.ld);
  CHECK(wrong_element({true, false, m, n, k, 1, 1}, a, b, before, c) == "");
  std::vector<double> workspace(3 * 70 * 45, kNan);
  for (const bool add : {false, true}) {
    c = before;
    blas::split_k_gemm(Cpu{3}, 3, true, false, m, n, k, a.data.data(), a.ld, b.data.data(), b.ld, add, c.data.data(),
                       workspace.data());
    CHECK(wrong_element({true, false, m, n, k, 1, add ? 1.0 : 0.0}, a, b, before, c) == "");
  }
}

TEST_CASE("bf16 product: every size around the edges of its tiles, and more than one block") {
  for (const int64_t m : {1, 2, 15, 16, 17, 33, 70})
    for (const int64_t n : {1, 3, 16, 31, 32, 70})
      for (const int64_t k : {1, 2, 15, 17, 32, 33, 70}) check_bf16_forms(m, n, k, 1, 0);
  check_bf16_forms(300, 40, 20, 1, 1);
  check_bf16_forms(20, 600, 20, 1, 0);
  check_bf16_forms(20, 40, 1100, 1, 1);
}

TEST_CASE("bf16 product: alpha and beta") {
  for (const double alpha : {1.0, -2.0}) {
    for (const double beta : {0.0, 1.0, -0.5}) {
      check_bf16_forms(64, 32, 40, alpha, beta);
      check_bf16_forms(33, 47, 540, alpha, beta);
    }
  }
}

TEST_CASE("bf16 product: factors are rounded to the nearest, ties to even; NaN and infinity stay") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {
      1.0f,     0x1.01p0f, 0x1.010002p0f, 0x1.03p0f, -0x1.01p0f,   0x1.feffp0f, 0x1.ffp127f, -infinity,
      infinity, 1e-30f,    -0.0f,         3e38f,     0x1.fcp-100f, -0x1.81p9f,  0x1.7fp-7f,  static_cast<float>(kNan)};
  const float one = 1;
  for (const blas::Bf16Unit unit : bf16_units()) {
    for (const bool trans : {false, true}) {
      std::vector<float> c(values.size()), d(values.size());
      const int64_t n = static_cast<int64_t>(values.size()), ld = trans ? n : 1;
      blas::bf16_multiply(unit, trans, false, {n, 1, 1, 1, values.data(), ld, &one, 1, {c.data(), 1, 0}, c.data(), 1});
      blas::bf16_multiply(unit, false, !trans,
                          {1, n, 1, 1, &one, 1, values.data(), trans ? n : 1, {d.data(), n, 0}, d.data(), n});
      for (size_t i = 0; i < values.size(); ++i) {
        CAPTURE(values[i]);
        const float expected = rounded(values[i]);
        CHECK((std::isnan(expected) ? std::isnan(c[i]) && std::isnan(d[i]) : c[i] == expected && d[i] == expected));
      }
    }
  }
}

TEST_CASE("gemm and gemm_bias: bf16 where it pays, by the shape alone") {
  const Matrix<float> a(64, 70, 0, 8), b(50, 70, 0, 9), bias(1, 50, 0, 6);
  const auto product = [&](int64_t m, Precision precision) {
    Matrix<float> c(m, 50, 0, 7);
    blas::gemm(false, true, m, 50, 70, 1.0f, a.data.data(), a.ld, b.data.data(), b.ld, 0.0f, c.data.data(), c.ld,
               blas::Rows::cached, precision);
    return c;
  };
  const auto biased = [&](Precision precision) {
    Matrix<float> c(64, 50, 0, 7);
    blas::gemm_bias(64, 50, 70, a.data.data(), a.ld, b.data.data(), b.ld, bias.data.data(), c.data.data(), c.ld,
                    blas::Rows::distant, precision);
    return c;
  };
  CHECK(product(4, Precision::bf16).data == product(4, Precision::f32).data);
  if (bf16_units().empty()) {
    CHECK(product(64, Precision::bf16).data == product(64, Precision::f32).data);
    return;
  }
  Matrix<float> zeros(64, 50, 0, 7), start = zeros;
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t j = 0; j < 50; ++j) zeros.at(i, j) = 0, start.at(i, j) = bias.at(0, j);
  const Case c{false, true, 64, 50, 70, 1, 1};
  CHECK(wrong_element(c, rounded(a), rounded(b), zeros, product(64, Precision::bf16)) == "");
  CHECK(wrong_element(c, rounded(a), rounded(b), start, biased(Precision::bf16)) == "");
  CHECK(wrong_element(c, a, b, zeros, product(64, Precision::bf16)) != "");
}

TEST_CASE("bf16 product: the same bits when several threads call at once") {
  const Matrix<float> a(60, 70, 0, 8), b(50, 70, 0, 9);
  for (const blas::Bf16Unit unit : bf16_units()) {
    const auto multiply = [&](std::vector<float>& c) {
      blas::bf16_multiply(unit, false, true,
                          {60, 50, 70, 1, a.data.data(), a.ld, b.data.data(), b.ld, {c.data(), 50, 0}, c.data(), 50});
    };
    std::vector<float> expected(60 * 50);
    multiply(expected);
    std::vector<std::vector<float>> results(32, std::vector<float>(60 * 50));
    parallel_for(Cpu{4}, 32, [&](int64_t i) { multiply(results[static_cast<size_t>(i)]); });
    for (const std::vector<float>& result : results) CHECK(result == expected);
  }
}

TEST_CASE("blocks of a product cover it once") {
  for (const int64_t m : {0, 1, 100, 257, 5000}) {
    for (const int64_t n : {0, 1, 33, 513, 1100}) {
      const blas::Blocks blocks(m, n, 64);
      int64_t area = 0;
      for (int64_t i = 0; i < blocks.count(); ++i) {
        const auto [row, column, rows, columns] = blocks[i];
        CHECK((rows > 0 && columns > 0 && row + rows <= m && column + columns <= n));
        area += rows * columns;
      }
      CHECK(area == m * n);
    }
  }
}

}  // namespace margay::test
