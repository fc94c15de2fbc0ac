#include "engine/cuda/nest.cuh"

#include <doctest/doctest.h>

#include <vector>

namespace margay::test {

// GPU kernels take their addresses from here, and this much of them can be checked without a GPU.
TEST_CASE("the offsets that CUDA kernels compute are those of the loop nest") {
  struct Case {
    Shape shape, first, second;
  };
  const std::vector<Case> cases = {{{}, {}, {}},
                                   {{7}, {1}, {3}},
                                   {{3, 4}, {4, 1}, {1, 3}},
                                   {{2, 1, 5}, {5, 5, 1}, {5, 99, 1}},
                                   {{2, 3, 4}, {12, 4, 1}, {0, 4, 0}},
                                   {{2, 3, 2, 2}, {12, 4, 2, 1}, {1, -2, 7, 30}},
                                   {{3, 0}, {1, 1}, {1, 1}}};
  for (const Case& c : cases) {
    CAPTURE(to_string(c.shape));
    const cuda::Nest<2> nest(StridedLoop<2>(c.shape, {c.first, c.second}));
    REQUIRE(nest.count == c.shape.numel());
    for (int64_t element = 0; element < nest.count; ++element) {
      int64_t at[2], rest = element, first = 0, second = 0;
      nest.offsets(element, at);
      for (int axis = c.shape.ndim() - 1; axis >= 0; --axis) {
        first += rest % c.shape[axis] * c.first[axis];
        second += rest % c.shape[axis] * c.second[axis];
        rest /= c.shape[axis];
      }
      CHECK(at[0] == first);
      CHECK(at[1] == second);
    }
  }
  CHECK(cuda::Nest<2>(StridedLoop<2>({3, 4}, {Shape{4, 1}, Shape{4, 1}})).contiguous());
  CHECK_FALSE(cuda::Nest<2>(StridedLoop<2>({3, 4}, {Shape{4, 1}, Shape{1, 3}})).contiguous());
  // More elements than 32 bits count.
  const cuda::Nest<1> large(StridedLoop<1>({int64_t{1} << 20, int64_t{1} << 20}, {Shape{int64_t{1} << 21, 1}}));
  CHECK(large.offset((int64_t{1} << 39) + 5) == (int64_t{1} << 40) + 5);
}

}  // namespace margay::test
