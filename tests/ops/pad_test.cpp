#include "ops/pad.h"

#include <doctest/doctest.h>

#include <limits>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {

TEST_CASE("pad, shift: elements stand where the definition says, for every dtype") {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean}) {
    CAPTURE(name_of(dtype));
    const Tensor x = random_uniform({2, 5, 3}, 3, -50, 50).to(DType::i32).to(dtype);
    const Elements e(x);
    for (const Tensor& input : {x, as_strided_copy(x)}) {
      CHECK(same_bits(pad(input, -2, 1, 3, 7), from_function({2, 9, 3}, dtype, [&](const Index& i) {
                        return i[1] >= 1 && i[1] < 6 ? e({i[0], i[1] - 1, i[2]}) : 7;
                      })));
      for (const int64_t by : {0, 1, 2, 4, 5, 6, -1, -3, -5, -70}) {
        CAPTURE(by);
        const Tensor y = shift(input, 1, by);
        CHECK(y.is_contiguous());
        CHECK(same_bits(y, from_function({2, 5, 3}, dtype, [&](const Index& i) {
                          return i[1] - by >= 0 && i[1] - by < 5 ? e({i[0], i[1] - by, i[2]}) : 0;
                        })));
      }
    }
  }
  const Tensor x = random_uniform({4}, 1);
  CHECK(same_bits(shift(x, 0, std::numeric_limits<int64_t>::min()), zeros({4}, DType::f64)));
}

TEST_CASE("pad, shift: errors") {
  const Tensor x = zeros({2, 3});
  CHECK(op_error([&] { pad(x, 2, 1, 1); }) == "pad: axis must be an axis of f32[2,3], got 2");
  CHECK(op_error([&] { pad(x, 0, -1, 1); }) == "pad: before must be at least 0, got -1");
  CHECK(op_error([&] { pad(x, 0, 1, -2); }) == "pad: after must be at least 0, got -2");
  CHECK(op_error([&] { pad(Tensor(), 0, 1, 2); }) == "pad: x must be a tensor, got none");
  CHECK(op_error([&] { shift(zeros({}), 0, 1); }) == "shift: axis must be an axis of f32[], got 0");
}

}  // namespace margay::test
