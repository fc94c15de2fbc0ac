#include "engine/shape.h"

#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>
#include <vector>

namespace margay::test {

TEST_CASE("products of sizes do not wrap") {
  constexpr int64_t huge = int64_t{1} << 62;
  CHECK(checked_multiply(1 << 20, 1 << 20) == int64_t{1} << 40);
  CHECK(checked_multiply(-3, 5) == -15);
  CHECK_THROWS_AS(checked_multiply(huge, 2), std::overflow_error);
  CHECK_THROWS_AS(checked_multiply(std::numeric_limits<int64_t>::min(), -1), std::overflow_error);
  CHECK_THROWS_AS((Shape{huge, huge}.numel()), std::overflow_error);
  CHECK_THROWS_AS((Shape{0, huge, huge}.numel()), std::overflow_error);
  CHECK_THROWS_AS(contiguous_strides({0, huge, huge}), std::overflow_error);
}

TEST_CASE("shapes") {
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{}.ndim() == 0);
  CHECK(Shape{2, 3, 8}.numel() == 48);
  CHECK(Shape{5, 0, 8}.numel() == 0);
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK_FALSE(Shape{2, 3} == Shape{2, 3, 1});
  CHECK_FALSE(Shape{2, 3} == Shape{3, 2});
  CHECK(to_string(Shape{2, 3, 8}) == "[2,3,8]");
  CHECK(to_string(Shape{}) == "[]");
  CHECK(Shape{2, 3, 4}.with(1, 7) == Shape{2, 7, 4});
  CHECK(Shape{2, 3, 4}.without(1) == Shape{2, 4});
  CHECK(Shape{1, 2, 3, 4, 5, 6, 7, 8}.ndim() == kMaxDims);
  CHECK_THROWS_AS((Shape{1, 2, 3, 4, 5, 6, 7, 8, 9}), std::length_error);
}

TEST_CASE("row-major strides") {
  CHECK(contiguous_strides({2, 3, 4}) == Shape{12, 4, 1});
  CHECK(contiguous_strides({2, 0, 4}) == Shape{4, 4, 1});
  CHECK(contiguous_strides({}) == Shape{});
}

TEST_CASE("broadcasting follows NumPy") {
  struct Case {
    Shape a, b;
    bool fits;
    Shape out;
  };
  const std::vector<Case> cases = {
      {{2, 3}, {2, 3}, true, {2, 3}},
      {{2, 3}, {3}, true, {2, 3}},
      {{2, 3}, {}, true, {2, 3}},
      {{2, 1}, {1, 5}, true, {2, 5}},
      {{4, 1, 3}, {2, 1}, true, {4, 2, 3}},
      {{0, 3}, {1, 3}, true, {0, 3}},
      {{0, 3}, {3}, true, {0, 3}},
      {{2, 3}, {2}, false, {}},
      {{0}, {2}, false, {}},
  };
  for (const Case& c : cases) {
    CAPTURE(to_string(c.a));
    CAPTURE(to_string(c.b));
    Shape out;
    CHECK(broadcast(c.a, c.b, out) == c.fits);
    CHECK(out == c.out);
    CHECK(broadcast(c.b, c.a, out) == c.fits);
  }
  CHECK(broadcast_strides({3}, {1}, {2, 3}) == Shape{0, 1});
  CHECK(broadcast_strides({2, 1}, {1, 1}, {4, 2, 3}) == Shape{0, 1, 0});
  CHECK(broadcast_strides({2, 3}, {1, 2}, {2, 3}) == Shape{1, 2});
}

}  // namespace margay::test
