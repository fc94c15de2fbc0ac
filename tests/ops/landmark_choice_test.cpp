// landmark_choice against a sort of every query's logits, ties, NaN, and what is refused.

#include "ops/landmark_choice.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

std::vector<int32_t> reference(const Tensor& q_values, const Tensor& landmark_values, int64_t Lk, int64_t W,
                               int64_t count) {
  const Elements q(q_values), landmarks(landmark_values);
  const int64_t H = q_values.dim(1), Lq = q_values.dim(2), dh = q_values.dim(3);
  std::vector<int32_t> result;
  for (int64_t row = 0; row < q_values.dim(0) * H * Lq; ++row) {
    const int64_t b = row / Lq / H, h = row / Lq % H, i = row % Lq, before = (Lk - Lq + i) / W;
    std::vector<double> logits(static_cast<size_t>(before), 0.0);
    for (int64_t m = 0; m < before; ++m)
      for (int64_t d = 0; d < dh; ++d) logits[static_cast<size_t>(m)] += q({b, h, i, d}) * landmarks({b, h, m, d});
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
      return logits[static_cast<size_t>(x)] > logits[static_cast<size_t>(y)];
    });
    order.resize(std::min(order.size(), static_cast<size_t>(count)));
    std::sort(order.begin(), order.end());
    order.resize(static_cast<size_t>(count), -1);
    result.insert(result.end(), order.begin(), order.end());
  }
  return result;
}

}  // namespace

TEST_CASE("landmark_choice finds the blocks with the largest logits") {
  for (const int64_t L : {1, 2, 3, 7, 64, 1000}) {
    for (const int64_t W : {1, 3, 16}) {
      for (const int64_t count : {1, 2, 5, 40}) {
        if (L == 1000 && count != 2) continue;  // the reference sorts for every query
        for (const int64_t Lq : {L, std::min<int64_t>(L, 5), int64_t{1}}) {
          CAPTURE(L);
          CAPTURE(W);
          CAPTURE(count);
          // Products of small integers are exact in f32: the same order, and many ties.
          const Tensor q = from_function({1, 2, Lq, 3}, DType::f32,
                                         [](const Index& at) { return (at[1] * 5 + at[2] * 7 + at[3] * 3) % 4 - 1.0; });
          const Tensor landmarks = from_function({1, 2, L / W, 3}, DType::f32, [](const Index& at) {
            return (at[1] + at[2] * at[2] * 3 + at[3] * 2) % 5 - 2.0;
          });
          const auto expected = reference(q, landmarks, L, W, count);
          CHECK(landmark_choice(q, landmarks, L, W, count).to_vector<int32_t>() == expected);
          CHECK(landmark_choice(q.to(DType::f64), landmarks.to(DType::f64), L, W, count).to_vector<int32_t>() ==
                expected);
          CHECK(landmark_choice(as_strided_copy(q), as_strided_copy(landmarks), L, W, count).to_vector<int32_t>() ==
                expected);
        }
      }
    }
  }
}

TEST_CASE("landmark_choice: of equals the lower block, a NaN before all, nothing of the future") {
  const Tensor q = ones({1, 1, 8, 2});
  Tensor landmarks = ones({1, 1, 4, 2});
  CHECK(landmark_choice(q, landmarks, 8, 2, 1).to_vector<int32_t>() == std::vector<int32_t>{-1, -1, 0, 0, 0, 0, 0, 0});
  CHECK(landmark_choice(q, landmarks, 8, 2, 2).to_vector<int32_t>() ==
        std::vector<int32_t>{-1, -1, -1, -1, 0, -1, 0, -1, 0, 1, 0, 1, 0, 1, 0, 1});
  landmarks = from_values<float>({1, 1, 2, 2, std::nanf(""), 0, 9, 9}, {1, 1, 4, 2});
  CHECK(landmark_choice(q, landmarks, 8, 2, 1).to_vector<int32_t>() == std::vector<int32_t>{-1, -1, 0, 0, 1, 1, 2, 2});
}

TEST_CASE("landmark_choice says what is wrong with its arguments") {
  const Tensor q = zeros({2, 3, 8, 4}), landmarks = zeros({2, 3, 4, 4});
  CHECK(op_error([&] {
          landmark_choice(zeros({8, 4}), landmarks, 8, 2, 1);
        }) == "landmark_choice: q must be [B,H,Lq,dh], got f32[8,4]");
  CHECK(op_error([&] { landmark_choice(q, landmarks, 7, 2, 1); }) ==
        "landmark_choice: seq_len must be at least the number of queries, 8, got 7");
  CHECK(op_error([&] { landmark_choice(q, landmarks, 8, 0, 1); }) ==
        "landmark_choice: block_size must be 1 or more, got 0");
  CHECK(op_error([&] { landmark_choice(q, landmarks, 8, 2, -1); }) ==
        "landmark_choice: count must be 0 or more, got -1");
  CHECK(
      op_error([&] { landmark_choice(q, landmarks, 10, 2, 1); }) ==
      "landmark_choice: landmarks must be [B,H,5,dh] for q f32[2,3,8,4], 10 tokens and blocks of 2, got f32[2,3,4,4]");
  CHECK(op_error([&] { landmark_choice(q, landmarks.to(DType::f64), 8, 2, 1); }) != "");
}

}  // namespace margay::test
