#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/rng.h"
#include "ops/argmax.h"
#include "ops/argsort.h"
#include "ops/concat.h"
#include "ops/one_hot.h"
#include "ops/topk.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

// Few different values, so that ties abound, with both zeros, infinities and NaNs among them.
std::vector<double> values_with_ties(int64_t count, uint64_t seed) {
  const double choices[] = {-0.0, 0.0, 1, 2, 3, -1, -2, kInf, -kInf, kNan};
  RandomStream random(seed, 1);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = choices[random.below(10)];
  return values;
}

std::vector<int32_t> sorted_indices(const double* row, int64_t count, bool descending) {
  const auto less = [](double a, double b) { return a < b || (!std::isnan(a) && std::isnan(b)); };
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t i, int32_t j) { return descending ? less(row[j], row[i]) : less(row[i], row[j]); });
  return order;
}

}  // namespace

TEST_CASE("argsort, topk, argmax: a stable sort agrees on rows of every length, ties and NaNs included") {
  constexpr int64_t rows = 3;
  for (const int64_t count : {1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 257, 1000}) {
    for (const bool ties : {true, false}) {
      CAPTURE(count);
      const std::vector<double> values =
          ties ? values_with_ties(rows * count, 5) : random_uniform({rows * count}, 6).to_vector<double>();
      const Tensor x = from_values(values, {rows, count});
      for (const DType dtype : {DType::f32, DType::f64}) {
        const Tensor input = x.to(dtype);
        const auto up = argsort(input).to_vector<int32_t>(), down = argsort(input, true).to_vector<int32_t>();
        const auto largest = argmax(input, 1).to_vector<int32_t>();
        for (int64_t r = 0; r < rows; ++r) {
          const auto begin = static_cast<size_t>(r * count), end = begin + static_cast<size_t>(count);
          const auto expected_up = sorted_indices(values.data() + begin, count, false);
          const auto expected_down = sorted_indices(values.data() + begin, count, true);
          CHECK(std::equal(up.begin() + static_cast<long>(begin), up.begin() + static_cast<long>(end),
                           expected_up.begin()));
          CHECK(std::equal(down.begin() + static_cast<long>(begin), down.begin() + static_cast<long>(end),
                           expected_down.begin()));
          CHECK(largest[static_cast<size_t>(r)] == expected_down[0]);
          for (const int64_t k : {int64_t{1}, int64_t{5}, int64_t{32}, int64_t{33}, count}) {
            if (k > count) continue;
            const TopK top = topk(input, k);
            CHECK(top.indices.shape() == Shape{rows, k});
            const auto indices = top.indices.to_vector<int32_t>();
            CHECK(std::equal(expected_down.begin(), expected_down.begin() + k, indices.begin() + r * k));
            const Elements all(input), chosen(top.values);
            for (int64_t i = 0; i < k; ++i) {
              const double wanted = all({r, expected_down[static_cast<size_t>(i)]}), got = chosen({r, i});
              CHECK((wanted == got || (std::isnan(wanted) && std::isnan(got))));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("argmax: any axis, with and without keeping it") {
  const Tensor x = random_uniform({3, 4, 5}, 1);
  const Elements e(x);
  for (const int axis : {0, 1, 2}) {
    CAPTURE(axis);
    const Tensor kept = argmax(as_strided_copy(x), axis - 3, true);
    const Tensor expected = from_function(x.shape().with(axis, 1), DType::i32, [&](const Index& i) {
      Index at = i;
      double best = -kInf;
      int64_t where = 0;
      for (int64_t j = 0; j < x.dim(axis); ++j) {
        at[static_cast<size_t>(axis)] = j;
        if (e(at) > best) {
          best = e(at);
          where = j;
        }
      }
      return static_cast<double>(where);
    });
    CHECK(same_bits(kept, expected));
    CHECK(same_bits(argmax(x, axis), squeeze(expected, axis)));
  }
  CHECK(argmax(full({2, 40}, -kInf), 1).to_vector<int32_t>() == std::vector<int32_t>{0, 0});
  CHECK(argmax(zeros({0, 3}), 0 + 1).shape() == Shape{0});
}

TEST_CASE("topk: the gradient goes to what was chosen and adds to what is there") {
  Tensor x = from_values<double>({3, 9, 9, 1, 7}, {5});
  x.set_requires_grad();
  const TopK top = topk(x, 3);
  CHECK(top.indices.to_vector<int32_t>() == std::vector<int32_t>{1, 2, 4});
  CHECK_FALSE(top.indices.requires_grad());
  concat({top.values, x}, 0).backward(from_values<double>({10, 20, 30, 1, 2, 3, 4, 5}, {8}));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{1, 12, 23, 4, 35});
}

TEST_CASE("one_hot: a single one in each row, for every dtype") {
  const Tensor ids = from_values<int32_t>({2, 0, 1, 2}, {2, 2});
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean}) {
    const Elements at(ids);
    CHECK(same_bits(one_hot(transpose(ids, 0, 1), 3, dtype), from_function({2, 2, 3}, dtype, [&](const Index& i) {
                      return at({i[1], i[0]}) == static_cast<double>(i[2]) ? 1 : 0;
                    })));
  }
  CHECK(one_hot(zeros({0}, DType::i32), 0).shape() == Shape{0, 0});
}

TEST_CASE("argmax, argsort, topk, one_hot: errors") {
  CHECK(op_error([] {
          argmax(zeros({2, 0}), 1);
        }) == "argmax: x must be of 1 to 2^31 - 1 elements along axis 1, got f32[2,0]");
  CHECK(op_error([] { argmax(zeros({2}, DType::i32), 0); }) == "argmax: x must be of a float dtype, got i32[2]");
  CHECK(op_error([] { argmax(zeros({2}), 1); }) == "argmax: axis must be an axis of f32[2], got 1");
  CHECK(op_error([] { argsort(zeros({})); }).starts_with("argsort: x must be at least 1-D"));
  CHECK(
      op_error([] { argsort(expand(zeros({1}), {int64_t{1} << 31})); }).starts_with("argsort: x must be at least 1-D"));
  CHECK(op_error([] {
          topk(zeros({2, 3}), 4);
        }) == "topk: k must be from 0 to 3, the size of the last axis of f32[2,3], got 4");
  CHECK(op_error([] { topk(zeros({2, 3}), -1); }).starts_with("topk: k must be"));
  CHECK(op_error([] { topk(zeros({}), 0); }).starts_with("topk: x must be at least 1-D"));
  CHECK(op_error([] {
          one_hot(from_values<int32_t>({1, 4, -1}, {3}), 4);
        }) == "one_hot: ids must be at least 0 and less than 4, got 4 at [1]");
  CHECK(op_error([] { one_hot(zeros({2}), 4); }) == "one_hot: ids must be of dtype i32 on cpu, got f32[2]");
  CHECK(op_error([] { one_hot(zeros({2}, DType::i32), -1); }) == "one_hot: classes must be at least 0, got -1");
}

}  // namespace margay::test
