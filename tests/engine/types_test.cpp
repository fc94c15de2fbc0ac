#include "engine/types.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/convert.h"
#include "engine/rng.h"
#include "engine/tensor.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const std::vector<DType>& all_dtypes() {
  static const std::vector<DType> dtypes = {DType::f32, DType::f64, DType::bf16,
                                            DType::i32, DType::i64, DType::boolean};
  return dtypes;
}

// Rounds an f32 to 8 significant bits, ties to even, by arithmetic alone.
float nearest_bf16(float value) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, -125) - 8);  // below 2^-126 the spacing stays the same
  return static_cast<float>(std::nearbyint(value / unit) * unit);
}

}  // namespace

TEST_CASE("names and sizes of dtypes") {
  const char* const names[] = {"f32", "f64", "bf16", "i32", "i64", "bool"};
  const size_t sizes[] = {4, 8, 2, 4, 8, 1};
  for (size_t i = 0; i < all_dtypes().size(); ++i) {
    CHECK(name_of(all_dtypes()[i]) == names[i]);
    CHECK(size_of(all_dtypes()[i]) == sizes[i]);
  }
  CHECK(acc_dtype(DType::bf16) == DType::f32);
  CHECK(acc_dtype(DType::f64) == DType::f64);
  CHECK(is_float(DType::bf16));
  CHECK_FALSE(is_float(DType::i64));
  CHECK_FALSE(is_float(DType::boolean));
}

TEST_CASE("bf16 is rounded to nearest, ties to even") {
  const auto bits = [](float value) { return bf16(value).bits; };
  CHECK(bits(1.0f) == 0x3f80);
  CHECK(bits(-2.0f) == 0xc000);
  CHECK(bits(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // tie: down to even
  CHECK(bits(std::bit_cast<float>(0x3f818000u)) == 0x3f82);  // tie: up to even
  CHECK(bits(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(bits(std::numeric_limits<float>::max()) == 0x7f80);  // rounds to infinity
  CHECK(bits(std::numeric_limits<float>::infinity()) == 0x7f80);
  CHECK(bits(-std::numeric_limits<float>::infinity()) == 0xff80);
  CHECK(bits(-0.0f) == 0x8000);
  CHECK(bits(std::bit_cast<float>(0x00000001u)) == 0x0000);
  CHECK(std::isnan(static_cast<float>(bf16(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));  // must not round to infinity

  RandomStream random(1, hash_name("bf16"));
  for (int i = 0; i < 100000; ++i) {
    const auto value = std::bit_cast<float>(random.bits());
    if (std::isnan(value) || std::abs(value) > 3.3e38f) continue;
    REQUIRE(static_cast<float>(bf16(value)) == nearest_bf16(value));
  }
}

TEST_CASE("every bf16 survives the way through f32") {
  for (uint32_t i = 0; i < 65536; ++i) {
    bf16 value;
    value.bits = static_cast<uint16_t>(i);
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide)) continue;
    REQUIRE(bf16(wide).bits == i);
  }
}

TEST_CASE("floats become integers by cutting off, within the range, and NaN becomes 0") {
  CHECK(convert<int32_t>(2.9f) == 2);
  CHECK(convert<int32_t>(-2.9) == -2);
  CHECK(convert<int32_t>(kNaN) == 0);
  CHECK(convert<int32_t>(1e10f) == std::numeric_limits<int32_t>::max());
  CHECK(convert<int32_t>(-kInfinity) == std::numeric_limits<int32_t>::min());
  CHECK(convert<int32_t>(2147483647.0) == 2147483647);
  CHECK(convert<int32_t>(-2147483648.0) == std::numeric_limits<int32_t>::min());
  CHECK(convert<int64_t>(9.3e18) == std::numeric_limits<int64_t>::max());
  CHECK(convert<int64_t>(-9223372036854775808.0f) == std::numeric_limits<int64_t>::min());
  CHECK(convert<int64_t>(bf16(-1e30f)) == std::numeric_limits<int64_t>::min());
  CHECK(convert<int32_t>(int64_t{1} << 32 | 5) == 5);
  CHECK(convert<bool>(0.0f) == false);
  CHECK(convert<bool>(-0.25) == true);
  CHECK(convert<bool>(kNaN) == true);
  CHECK(convert<bool>(int64_t{1} << 40) == true);
  CHECK(convert<float>(true) == 1.0f);
  CHECK(static_cast<float>(convert<bf16>(int64_t{1000})) == 1000.0f);
}

TEST_CASE("tensors convert between all dtypes, from any strides") {
  const std::vector<double> values = {0, 1, -1, 2.5, -3.75, 100, 17, 64, -128, 5, 1, 0};
  const Tensor source = from_values(values, {2, 3, 2});
  for (const DType from : all_dtypes()) {
    for (const DType to : all_dtypes()) {
      CAPTURE(std::string(name_of(from)));
      CAPTURE(std::string(name_of(to)));
      const Tensor start = source.to(from);
      const Tensor direct = start.to(to), strided = as_strided_copy(start).to(to);
      CHECK(direct.dtype() == to);
      CHECK(direct.is_contiguous());
      CHECK(same_bits(direct, strided));
      const auto got = direct.to(DType::f64).to_vector<double>();
      for (size_t i = 0; i < values.size(); ++i) {
        double expected = values[i];  // exact in every float dtype
        for (const DType step : {from, to}) {
          if (step == DType::boolean) expected = expected != 0;
          if (step == DType::i32 || step == DType::i64) expected = std::trunc(expected);
        }
        CHECK(got[i] == expected);
      }
    }
  }
  CHECK(source.to(DType::f64).same(source));
}

}  // namespace margay::test
