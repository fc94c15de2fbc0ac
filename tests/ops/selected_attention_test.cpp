// selected_attention against causal_attention of all queries, gradients included, and what the op table cannot express.

#include "ops/selected_attention.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/error.h"
#include "engine/parallel.h"
#include "engine/rng.h"
#include "ops/embedding.h"
#include "ops/view.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

// q, k, v as slices of one packed buffer, beta.
Tensors leaves_of(const AttentionCase& c, DType dtype) {
  const Tensor packed = random_uniform({c.B, c.Lk, 3, c.H, c.dh}, 1, -1.5, 1.5, dtype);
  Tensors leaves;
  for (int64_t part = 0; part < 3; ++part) leaves.push_back(transpose(select(packed, 2, part), 1, 2));
  if (c.beta) leaves.push_back(random_uniform({c.H}, 2, 0.3, 1, dtype));
  for (Tensor& leaf : leaves) leaf = leaf.detach().set_requires_grad();
  return leaves;
}

AttentionOptions options_of(const AttentionCase& c) {
  AttentionOptions options{.scale = 0.7, .window = c.window, .dropout = c.dropout, .stream = 9};
  if (c.dropout > 0) options.rng = from_values<int64_t>({42, 7}, {2});
  return options;
}

// R rows in no order, some of them -1 and some twice.
Tensor some_rows(const AttentionCase& c, int64_t R) {
  RandomStream random(3, static_cast<uint64_t>(R));
  std::vector<int32_t> rows(static_cast<size_t>(R));
  for (int32_t& row : rows) row = static_cast<int32_t>(random.below(static_cast<uint32_t>(c.B * c.Lk + 1))) - 1;
  return from_values(rows, {R});
}

struct Results {
  Tensor y;
  Tensors gradients;
};

// `attend` makes rows [R,H,dh] of leaves.
template <class Attend>
Results results(const AttentionCase& c, DType dtype, const Tensor& dy, const Attend& attend) {
  const Tensors leaves = leaves_of(c, dtype);
  Results r{attend(leaves, c.beta ? leaves[3] : Tensor()), {}};
  r.y.backward(dy);
  for (const Tensor& leaf : leaves) r.gradients.push_back(leaf.grad());
  return r;
}

Results selected(const AttentionCase& c, DType dtype, const Tensor& rows, const Tensor& dy) {
  return results(c, dtype, dy, [&](const Tensors& in, const Tensor& beta) {
    return selected_attention(in[0], in[1], in[2], rows, beta, options_of(c));
  });
}

void check_against_all(const AttentionCase& c, int64_t R) {
  CAPTURE(title(c));
  CAPTURE(R);
  const Tensor rows = some_rows(c, R), dy = random_uniform({R, c.H, c.dh}, 4);
  const Results expected = results(c, DType::f64, dy, [&](const Tensors& in, const Tensor& beta) {
    const Tensor all = causal_attention(in[0], in[1], in[2], beta, options_of(c));
    return reshape(take_rows(reshape(transpose(all, 1, 2), {c.B * c.Lk, c.H * c.dh}), rows), {R, c.H, c.dh});
  });
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : 3e-5;
    const Results got = selected(c, dtype, rows, dy.to(dtype));
    CHECK(difference(got.y, expected.y, tolerance) == "");
    for (size_t i = 0; i < got.gradients.size(); ++i) {
      CAPTURE(i);
      CHECK(difference(got.gradients[i], expected.gradients[i], tolerance) == "");
    }
  }
}

}  // namespace

TEST_CASE("selected attention equals those rows of causal attention, and so do its gradients") {
  for (const int64_t L : {1, 2, 7, 65, 130})
    for (const int64_t R : {1, 3, 16, 17, 100}) check_against_all({2, 1, L, L, 16}, R);
  for (const int64_t dh : {1, 3, 8, 17, 48, 64, 81}) check_against_all({1, 2, 70, 70, dh}, 12);
  for (const int64_t window : {1, 2, 15, 16, 63, 64, 100, 1000}) check_against_all({2, 1, 200, 200, 8, window}, 20);
  check_against_all({3, 4, 65, 65, 24, 0, true}, 30);
  check_against_all({70, 3, 5, 5, 8, 2, true}, 90);  // more heads than pieces
}

TEST_CASE("selected attention drops the weights that causal attention drops") {
  check_against_all({2, 2, 5, 5, 4, 0, false, 0.5}, 6);
  check_against_all({1, 2, 131, 131, 8, 0, true, 0.2}, 70);
  check_against_all({1, 1, 133, 133, 3, 70, false, 0.9}, 10);
}

TEST_CASE("selected attention: a token changes nothing before it, not even as NaN") {
  const AttentionCase c{1, 2, 150, 150, 16};
  const Tensor rows = from_values<int32_t>({149, 20, 64, 63, 0}, {5});
  const auto run = [&](double poison) {
    Tensors in = leaves_of(c, DType::f32);
    for (size_t i = 0; i < 3; ++i) {
      in[i] = in[i].detach();
      if (poison != 0) slice(in[i], 2, 64, 150).fill(poison);
    }
    return selected_attention(in[0], in[1], in[2], rows, {}, options_of(c));
  };
  const Tensor clean = run(0);
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    const Tensor poisoned = run(poison);
    for (const int64_t row : {1, 3, 4}) CHECK(same_bits(select(poisoned, 0, row), select(clean, 0, row)));
    CHECK_FALSE(same_bits(select(poisoned, 0, 2), select(clean, 0, 2)));
  }
}

TEST_CASE("selected attention: the number of threads does not change a bit") {
  const int before = num_threads();
  const AttentionCase c{9, 3, 90, 90, 16, 0, true};
  const Tensor rows = some_rows(c, 200), dy = random_uniform({200, 3, 16}, 4, -1, 1, DType::f32);
  const auto run = [&](int threads) {
    set_num_threads(threads);
    return selected(c, DType::f32, rows, dy);
  };
  const Results expected = run(1);
  for (const int threads : {2, 3}) {
    const Results got = run(threads);
    CHECK(same_bits(got.y, expected.y));
    for (size_t i = 0; i < got.gradients.size(); ++i) CHECK(same_bits(got.gradients[i], expected.gradients[i]));
  }
  set_num_threads(before);
}

TEST_CASE("selected attention says what is wrong with its arguments") {
  const Tensor q = zeros({2, 3, 4, 5}, DType::f32), rows = from_values<int32_t>({0, 7}, {2});
  const auto refused = [&](const char* arg, const Tensor& k, const Tensor& v, const Tensor& r, const Tensor& beta,
                           const AttentionOptions& options) {
    CAPTURE(arg);
    const std::string message = op_error([&] { selected_attention(q, k, v, r, beta, options); });
    CHECK(message.find("selected_attention") != std::string::npos);
    CHECK(message.find(arg) != std::string::npos);
  };
  refused("k", zeros({2, 3, 5, 5}, DType::f32), q, rows, {}, {});
  refused("v", q, zeros({2, 3, 4, 5}, DType::f64), rows, {}, {});
  refused("rows", q, q, {}, {}, {});
  refused("rows", q, q, zeros({2}, DType::f32), {}, {});
  refused("rows", q, q, reshape(rows, {2, 1}), {}, {});
  refused("rows", q, q, from_values<int32_t>({8}, {1}), {}, {});
  refused("rows", q, q, from_values<int32_t>({-2}, {1}), {}, {});
  refused("beta", q, q, rows, zeros({2}, DType::f32), {});
  refused("window", q, q, rows, {}, {.window = -1});
  refused("dropout", q, q, rows, {}, {.dropout = 1});
  refused("rng", q, q, rows, {}, {.dropout = 0.5});
}

}  // namespace margay::test
