// rope against plain loops, the properties it is used for, and the tables with and without YaRN.

#include "ops/rope.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

RopeTable plain_table(int64_t first, int64_t length, int64_t rotary_dims, DType dtype = DType::f64) {
  return rope_table(first, length, rotary_dims, 10000, 1, 64, dtype, {});
}

// Angle of pair i per position, read back from the table's row of position 1 (angles below pi).
double angle_of(const RopeTable& table, int64_t i) {
  return std::atan2(Elements(table.sin)({1, i}), Elements(table.cos)({1, i}));
}

double dot(const Tensor& a, const Tensor& b, int64_t row_a, int64_t row_b) {
  const Elements x(a), y(b);
  double sum = 0;
  for (int64_t d = 0; d < a.dim(3); ++d) sum += x({0, 0, row_a, d}) * y({0, 0, row_b, d});
  return sum;
}

}  // namespace

TEST_CASE("rope rotates pairs of the first dims by position times frequency, and copies the rest") {
  for (const auto& [dh, r] : {std::pair<int64_t, int64_t>{8, 8}, {9, 6}, {70, 64}, {64, 16}, {5, 0}}) {
    CAPTURE(dh);
    const int64_t first = 3, L = 7;
    const Tensor x = random_uniform({2, 3, L, dh}, 1);
    const Elements in(x);
    const Tensor expected = from_function(x.shape(), DType::f64, [&, r = r](const Index& at) {
      const int64_t d = at[3];
      if (d >= r) return in(at);
      const int64_t i = d % (r / 2);
      const double angle = static_cast<double>(first + at[2]) * std::pow(10000, -2.0 * static_cast<double>(i) / r);
      const double low = in({at[0], at[1], at[2], i}), high = in({at[0], at[1], at[2], i + r / 2});
      return d < r / 2 ? low * std::cos(angle) - high * std::sin(angle)
                       : high * std::cos(angle) + low * std::sin(angle);
    });
    CHECK(difference(rope(x, plain_table(first, L, r)), expected, 1e-12) == "");
    CHECK(difference(rope(x.to(DType::f32), plain_table(first, L, r, DType::f32)), expected, 1e-5) == "");
  }
}

TEST_CASE("rope keeps norms, and products depend on the distance of positions only") {
  const int64_t L = 40, dh = 16;
  const Tensor same = random_uniform({1, 1, 1, dh}, 2), other = random_uniform({1, 1, 1, dh}, 3);
  const auto repeated = [&](const Tensor& row) { return row.view({1, 1, L, dh}, {L * dh, L * dh, 0, 1}); };
  const RopeTable table = plain_table(0, L, 12);
  const Tensor q = rope(repeated(same), table), k = rope(repeated(other), table);
  const double norm = dot(same, same, 0, 0);
  for (const int64_t distance : {0, 1, 5, 20}) {
    const double expected = dot(q, k, distance, 0);
    for (int64_t t = 0; t + distance < L; ++t) {
      CHECK(dot(q, q, t, t) == doctest::Approx(norm).epsilon(1e-12));
      CHECK(dot(q, k, t + distance, t) == doctest::Approx(expected).epsilon(1e-10));
    }
  }
  CHECK(dot(q, k, 1, 0) != doctest::Approx(dot(q, k, 5, 0)));
}

TEST_CASE("rope reads heads that lie side by side and leaves them so") {
  const Tensor packed = random_uniform({2, 70, 3, 4, 6}, 4, -1, 1, DType::f32);
  const Tensor x = heads_view(packed, 1), dy = heads_view(random_uniform({2, 70, 3, 4, 6}, 5, -1, 1, DType::f32), 2);
  const RopeTable table = plain_table(0, 70, 6, DType::f32);
  const auto run = [&](const Tensor& input, const Tensor& cotangent) {
    Tensor leaf = input.detach();
    leaf.set_requires_grad();
    const Tensor y = rope(leaf, table);
    y.backward(cotangent);
    return Tensors{y.detach(), leaf.grad()};
  };
  const Tensors views = run(x, dy), copies = run(x.clone(), dy.clone());
  CHECK(same_bits(views[0], copies[0]));
  CHECK(same_bits(views[1], copies[1]));
  CHECK(views[0].strides() == Shape{70 * 24, 6, 24, 1});
  CHECK(copies[0].is_contiguous());
}

TEST_CASE("rope tables of any positions are rows of one table") {
  const RopeTable whole = plain_table(0, 50, 8), part = plain_table(31, 7, 8);
  const auto rows = [](const Tensor& t) { return t.view({7, 4}, t.strides(), 31 * 4); };
  CHECK(same_bits(part.cos, rows(whole.cos)));
  CHECK(same_bits(part.sin, rows(whole.sin)));
}

TEST_CASE("rope tables with YaRN interpolate slow pairs, keep fast ones and blend between") {
  const int64_t r = 64, train_length = 2048;
  const double base = 10000, scale = 4;
  const auto table = [&](double s) { return rope_table(0, 2, r, base, s, train_length, DType::f64, {}); };
  const RopeTable plain = table(1), stretched = table(scale);
  int kept = 0, blended = 0, interpolated = 0;
  for (int64_t i = 0; i < r / 2; ++i) {
    const double theta = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(r));
    CHECK(angle_of(plain, i) == doctest::Approx(theta).epsilon(1e-12));
    const double ratio = angle_of(stretched, i) / theta;
    const double turns = static_cast<double>(train_length) * theta / (2 * std::numbers::pi);
    if (turns >= 32) CHECK(ratio == doctest::Approx(1));
    if (turns <= 1) CHECK(ratio == doctest::Approx(1 / scale));
    kept += ratio > 1 - 1e-12;
    interpolated += ratio < 1 / scale + 1e-12;
    blended += ratio < 1 - 1e-12 && ratio > 1 / scale + 1e-12;
  }
  // corr(32) = 8.06 and corr(1) = 20.1: pairs 0 ... 8 are kept, 21 ... 31 interpolated.
  CHECK(kept == 9);
  CHECK(blended == 12);
  CHECK(interpolated == 11);
  const double theta14 = std::pow(base, -28.0 / 64), blend = 6.0 / 13;
  CHECK(angle_of(stretched, 14) == doctest::Approx((1 - blend) * theta14 + blend * theta14 / scale).epsilon(1e-12));
}

TEST_CASE("rope tables with a YaRN scale of 1 are the plain ones to the bit") {
  const RopeTable plain = plain_table(5, 40, 16);
  for (const int64_t train_length : {1, 7, 300, 1 << 20}) {
    const RopeTable table = rope_table(5, 40, 16, 10000, 1, train_length, DType::f64, {});
    CHECK(same_bits(table.cos, plain.cos));
    CHECK(same_bits(table.sin, plain.sin));
  }
}

TEST_CASE("rope tables with YaRN hold the blended frequencies of the paper") {
  struct Setting {
    int64_t r;
    double base, scale;
    int64_t train_length;
  };
  // Pairs of every kind, partial rotations, a border that falls on one pair, scales below 1.
  const std::vector<Setting> settings{{64, 10000, 4, 2048},   {8, 10000, 8, 2048},  {8, 10000, 2, 128},
                                      {16, 100, 3, 512},      {2, 10000, 4, 40},    {32, 500000, 16, 8192},
                                      {64, 10000, 0.5, 2048}, {128, 100, 4, 100000}};
  for (const auto& [r, base, scale, train_length] : settings) {
    CAPTURE(r);
    CAPTURE(train_length);
    const auto turning = [&, r = r, base = base, train_length = train_length](double turns) {
      return static_cast<double>(r) * std::log(static_cast<double>(train_length) / (2 * std::numbers::pi * turns)) /
             (2 * std::log(base));
    };
    const double low = std::max(std::floor(turning(32)), 0.0);
    double high = std::min(std::ceil(turning(1)), static_cast<double>(r - 1));
    if (high == low) high += 0.001;
    const RopeTable table = rope_table(0, 2, r, base, scale, train_length, DType::f64, {});
    for (int64_t i = 0; i < r / 2; ++i) {
      const double theta = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(r));
      const double blend = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      CHECK(angle_of(table, i) == doctest::Approx((1 - blend) * theta + blend * theta / scale).epsilon(1e-10));
    }
  }
}

TEST_CASE("rope says what is wrong with its arguments") {
  const Tensor x = zeros({2, 3, 4, 6});
  const auto table = [](int64_t length, int64_t dims, DType dtype = DType::f32) {
    return plain_table(0, length, dims, dtype);
  };
  CHECK(op_error([&] { rope(zeros({2, 3, 4}), table(4, 6)); }) == "rope: x must be [B,H,L,dh], got f32[2,3,4]");
  CHECK(op_error([&] { rope(x, table(5, 6)); }) ==
        "rope: table.cos must be [L, r/2] with r <= dh for x f32[2,3,4,6], got f32[5,3]");
  CHECK(op_error([&] { rope(x, table(4, 8)); }) ==
        "rope: table.cos must be [L, r/2] with r <= dh for x f32[2,3,4,6], got f32[4,4]");
  CHECK(op_error([&] { rope(x, table(4, 6, DType::f64)); }) != "");
  CHECK(op_error([&] {
          rope(x, {table(4, 6).cos, table(4, 4).sin});
        }) == "rope: table.sin must be of the shape of table.cos f32[4,3], got f32[4,2]");
  CHECK(op_error([&] { rope(x, {}); }) != "");
  const auto make = [](int64_t first, int64_t length, int64_t dims, double base, double scale, int64_t train) {
    return op_error([=] { rope_table(first, length, dims, base, scale, train, DType::f32, {}); });
  };
  CHECK(make(-1, 4, 6, 100, 1, 8) == "rope_table: first_position must be 0 or more, got -1");
  CHECK(make(0, -4, 6, 100, 1, 8) == "rope_table: length must be 0 or more, got -4");
  CHECK(make(0, 4, 5, 100, 1, 8) == "rope_table: rotary_dims must be even and 0 or more, got 5");
  CHECK(make(0, 4, 6, 1, 1, 8) == "rope_table: base must be above 1, got 1");
  CHECK(make(0, 4, 6, 100, 0, 8) == "rope_table: yarn_scale must be positive, got 0");
  CHECK(make(0, 4, 6, 100, 1, 0) == "rope_table: train_length must be positive, got 0");
  CHECK(op_error([] { rope_table(0, 4, 6, 100, 1, 8, DType::i32, {}); }) ==
        "rope_table: dtype must be a float dtype, got i32");
}

}  // namespace margay::test
