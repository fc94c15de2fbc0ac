// The emulated instructions of ops/cuda/mma.cuh against plain loops, and what they refuse.

#include "ops/cuda/mma.cuh"

#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

namespace margay::test {
namespace {

using Matrix = std::vector<float>;  // 16 columns

/// Small integers, which bf16 and sums of their products hold exactly.
Matrix matrix_of(int rows, int seed) {
  Matrix matrix;
  for (int i = 0; i < rows * 16; ++i) matrix.push_back(static_cast<float>((i * i + seed * i + seed) % 31 - 15));
  return matrix;
}

struct Rows {
  alignas(16) bf16 row[16][24];  // 48 bytes apart

  explicit Rows(const Matrix& from) {
    for (size_t i = 0; i < from.size(); ++i) row[i / 16][i % 16] = bf16(from[i]);
  }
};

void on_a_warp(const std::function<void()>& thread) { cuda_emulator::run(dim3(1), dim3(32), thread); }

}  // namespace

TEST_CASE("emulated tensor cores: a product of fragments that are filled by hand") {
  const Matrix a = matrix_of(16, 3), b = matrix_of(16, 5);  // b: 8 columns are used
  Matrix c(16 * 8, 0.5f);
  on_a_warp([&] {
    const auto g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto across = [&](unsigned i, unsigned j) { return cuda::bf16_pair(a[i * 16 + j], a[i * 16 + j + 1]); };
    const auto down = [&](unsigned i, unsigned j) { return cuda::bf16_pair(b[i * 16 + j], b[(i + 1) * 16 + j]); };
    float sums[4] = {0.5f, 0.5f, 0.5f, 0.5f};
    cuda::multiply_add(sums, {across(g, 2 * t), across(g + 8, 2 * t), across(g, 2 * t + 8), across(g + 8, 2 * t + 8)},
                       {down(2 * t, g), down(2 * t + 8, g)});
    c[g * 8 + 2 * t] = sums[0];
    c[g * 8 + 2 * t + 1] = sums[1];
    c[(g + 8) * 8 + 2 * t] = sums[2];
    c[(g + 8) * 8 + 2 * t + 1] = sums[3];
  });
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      float expected = 0.5f;
      for (size_t k = 0; k < 16; ++k) expected += a[i * 16 + k] * b[k * 16 + j];
      CHECK(c[i * 8 + j] == expected);
    }
  }
}

TEST_CASE("emulated tensor cores: matrices are loaded as they lie, and transposed") {
  const Matrix from = matrix_of(16, 7);
  const Rows rows(from);
  on_a_warp([&] {
    const auto lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t plain[4], transposed[4];
    const void* const row = &rows.row[lane % 16][lane / 16 * 8];  // upper left, lower left, upper right, lower right
    cuda::load_matrices<false>(plain, row);
    cuda::load_matrices<true>(transposed, row);
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned top = m % 2 * 8, left = m / 2 * 8;
      const auto at = [&](unsigned i, unsigned j) { return from[(top + i) * 16 + left + j]; };
      CHECK(plain[m] == cuda::bf16_pair(at(g, 2 * t), at(g, 2 * t + 1)));
      CHECK(transposed[m] == cuda::bf16_pair(at(2 * t, g), at(2 * t + 1, g)));
    }
  });
}

TEST_CASE("emulated tensor cores: a whole warp and aligned rows, or nothing") {
  const Rows rows(matrix_of(16, 1));
  const auto load = [&](int columns, unsigned lanes) {
    on_a_warp([&] {
      if (threadIdx.x >= lanes) return;
      uint32_t out[4];
      cuda::load_matrices<false>(out, &rows.row[threadIdx.x % 16][columns]);
    });
  };
  CHECK_NOTHROW(load(8, 32));
  CHECK_THROWS_AS(load(4, 32), std::logic_error);
  CHECK_THROWS_AS(load(8, 31), std::logic_error);
}

TEST_CASE("emulated tensor cores: a copy is there once it was waited for, and no sooner") {
  alignas(16) const int from[4] = {1, 2, 3, 4};
  alignas(16) int first[4] = {9, 9, 9, 9}, second[4] = {9, 9, 9, 9};
  cuda_emulator::run(dim3(1), dim3(1), [&] {
    cuda::start_copy(first, from, true);
    cuda::end_copy_group();
    cuda::start_copy(second, from, false);
    cuda::end_copy_group();
    CHECK(first[3] == 9);
    cuda::wait_for_copies<1>();
    CHECK(first[3] == 4);
    CHECK(second[3] == 9);
    cuda::wait_for_copies<0>();
    CHECK(second[3] == 0);
    CHECK_THROWS_AS(cuda::start_copy(first, &from[1], true), std::logic_error);
  });
}

TEST_CASE("the emulated block agrees on whether any thread said yes") {
  for (const unsigned yes : {0u, 40u, 64u}) {
    cuda_emulator::run(dim3(2), dim3(64), [&] {
      CHECK(__syncthreads_or(threadIdx.x == yes) == (yes < 64));
      CHECK(__syncthreads_or(threadIdx.x == 0) == 1);
      CHECK(__syncthreads_or(0) == 0);
    });
  }
}

}  // namespace margay::test
