// causal_attention against a plain triple loop in f64, its gradients included, and what the op table cannot express:
// that the future is invisible to the bit, how memory is laid out, and what is refused.

#include "ops/causal_attention.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/parallel.h"
#include "ops/dropout.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

// q, k, v as slices of one packed buffer [B,L,3,H,dh] (q its last Lq rows), beta [H], dy.
struct Inputs {
  Tensor q, k, v, beta, dy;
};

Inputs inputs_of(const AttentionCase& c, DType dtype = DType::f64) {
  const Tensor packed = random_uniform({c.B, c.Lk, 3, c.H, c.dh}, 1, -1.5, 1.5, dtype);
  const Shape strides{c.Lk * 3 * c.H * c.dh, c.dh, 3 * c.H * c.dh, 1};
  const auto slice_of = [&](int64_t part, int64_t rows) {
    return packed.view({c.B, c.H, rows, c.dh}, strides, part * c.H * c.dh + (c.Lk - rows) * strides[2]);
  };
  const Tensor beta = c.beta ? random_uniform({c.H}, 2, 0.3, 1, dtype) : Tensor();
  return {slice_of(0, c.Lq), slice_of(1, c.Lk), slice_of(2, c.Lk), beta,
          random_uniform({c.B, c.H, c.Lq, c.dh}, 3, -1, 1, dtype)};
}

AttentionOptions options_of(const AttentionCase& c) {
  AttentionOptions options{.scale = 0.7, .window = c.window, .dropout = c.dropout, .stream = 9};
  if (c.dropout > 0) options.rng = from_values<int64_t>({42, 7}, {2});
  return options;
}

using Table = std::vector<double>;

// What dropout multiplies the weight of key j for query i of every head with.
Table dropout_factors(const AttentionCase& c) {
  Table factors(static_cast<size_t>(c.B * c.H * c.Lq * c.Lk), 1);
  if (c.dropout == 0) return factors;
  const AttentionOptions options = options_of(c);
  const DropoutMask mask = DropoutMask::make(options.rng.data<int64_t>(), options.stream, c.dropout);
  for (size_t i = 0; i < factors.size(); ++i) factors[i] = mask.keeps_element(i) ? 1 / (1 - c.dropout) : 0;
  return factors;
}

struct Reference {
  Table y, dq, dk, dv, dbeta;
};

// The definition, row by row.
Reference reference(const AttentionCase& c, const Inputs& in) {
  const Table factors = dropout_factors(c);
  const auto q = in.q.to_vector<double>(), k = in.k.to_vector<double>(), v = in.v.to_vector<double>(),
             dy = in.dy.to_vector<double>();
  const auto beta = c.beta ? in.beta.to_vector<double>() : Table(static_cast<size_t>(c.H), 0.7);
  Reference r{Table(q.size()), Table(q.size()), Table(k.size()), Table(v.size()), Table(beta.size())};
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t d = 0; d < c.dh; ++d) sum += a[d] * b[d];
    return sum;
  };
  for (int64_t head = 0; head < c.B * c.H; ++head) {
    const auto factor = beta[static_cast<size_t>(head % c.H)];
    for (int64_t i = 0; i < c.Lq; ++i) {
      const int64_t row = head * c.Lq + i, position = c.Lk - c.Lq + i;
      const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window) : 0;
      const double *const qi = &q[static_cast<size_t>(row * c.dh)], *const gi = &dy[static_cast<size_t>(row * c.dh)];
      Table p(static_cast<size_t>(c.Lk)), dp(static_cast<size_t>(c.Lk));
      double sum = 0, mean = 0;
      const auto key = [&](int64_t j) { return static_cast<size_t>((head * c.Lk + j) * c.dh); };
      const auto kept = [&](int64_t j) { return factors[static_cast<size_t>(row * c.Lk + j)]; };
      for (int64_t j = first; j <= position; ++j)
        sum += p[static_cast<size_t>(j)] = std::exp(factor * dot(qi, &k[key(j)]));
      for (int64_t j = first; j <= position; ++j) {
        p[static_cast<size_t>(j)] /= sum;
        dp[static_cast<size_t>(j)] = kept(j) * dot(gi, &v[key(j)]);
        mean += p[static_cast<size_t>(j)] * dp[static_cast<size_t>(j)];
      }
      for (int64_t j = first; j <= position; ++j) {
        const double weight = p[static_cast<size_t>(j)], ds = weight * (dp[static_cast<size_t>(j)] - mean);
        r.dbeta[static_cast<size_t>(head % c.H)] += ds * dot(qi, &k[key(j)]);
        for (int64_t d = 0; d < c.dh; ++d) {
          const size_t at = key(j) + static_cast<size_t>(d), own = static_cast<size_t>(row * c.dh + d);
          r.y[own] += weight * kept(j) * v[at];
          r.dq[own] += factor * ds * k[at];
          r.dk[at] += factor * ds * q[own];
          r.dv[at] += weight * kept(j) * dy[own];
        }
      }
    }
  }
  return r;
}

void check_against_reference(const AttentionCase& c) {
  CAPTURE(title(c));
  const Inputs in = inputs_of(c);
  const Reference expected = reference(c, in);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : 2e-5;
    const Inputs own = inputs_of(c, dtype);
    Tensors leaves{own.q.detach(), own.k.detach(), own.v.detach()};
    if (c.beta) leaves.push_back(own.beta.detach());
    for (Tensor& leaf : leaves) leaf.set_requires_grad();
    const Tensor y = causal_attention(leaves[0], leaves[1], leaves[2], c.beta ? leaves[3] : Tensor(), options_of(c));
    y.backward(own.dy);
    CHECK(difference(y, from_values(expected.y, y.shape()), tolerance) == "");
    const std::vector<const Table*> gradients{&expected.dq, &expected.dk, &expected.dv, &expected.dbeta};
    for (size_t i = 0; i < leaves.size(); ++i) {
      CAPTURE(i);
      const Tensor wanted = from_values(*gradients[i], leaves[i].shape());
      CHECK(difference(leaves[i].grad(), wanted, tolerance) == "");
    }
  }
}

}  // namespace

TEST_CASE("causal attention equals its definition, and so do its gradients") {
  for (const int64_t L : {1, 2, 3, 7, 33, 65, 130}) check_against_reference({2, 1, L, L, 16});
  for (const int64_t dh : {1, 3, 8, 17, 32, 48, 64, 81, 128}) check_against_reference({1, 2, 70, 70, dh});
  for (const int64_t window : {1, 2, 15, 16, 63, 64, 65, 100, 129, 1000})
    check_against_reference({1, 1, 200, 200, 8, window});
  for (const int64_t Lq : {1, 2, 64, 65, 100}) {
    check_against_reference({2, 2, Lq, 150, 20});
    check_against_reference({1, 3, Lq, 150, 20, 40, true});
  }
  check_against_reference({3, 4, 65, 65, 24, 0, true});
  check_against_reference({5, 7, 33, 33, 8, 5, true});  // more heads than pieces for one group each
}

TEST_CASE("causal attention drops the weights that the dropout mask says") {
  check_against_reference({2, 2, 5, 5, 4, 0, false, 0.5});
  check_against_reference({1, 2, 65, 131, 8, 0, true, 0.2});  // rows of the mask begin inside of its blocks
  check_against_reference({1, 1, 130, 133, 3, 70, false, 0.9});
  check_against_reference({1, 1, 3, 2101, 8, 0, false, 0.3});
}

TEST_CASE("causal attention of few queries over many keys, cut into parts") {
  for (const int64_t window : {0, 2100}) {
    check_against_reference({1, 1, 1, 4200, 8, window});
    check_against_reference({1, 2, 70, 2200, 8, window, true});
  }
}

TEST_CASE("causal attention: a token changes nothing before it, not even by a bit, not even as NaN") {
  for (const AttentionCase& c :
       {AttentionCase{1, 2, 150, 150, 16}, AttentionCase{1, 1, 150, 150, 5, 70}, AttentionCase{1, 1, 90, 2100, 8}}) {
    CAPTURE(title(c));
    const Tensor before = [&] {
      const Inputs in = inputs_of(c, DType::f32);
      return causal_attention(in.q, in.k, in.v, {}, options_of(c)).contiguous();
    }();
    for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      for (const int64_t i : {1, 15, 16, 63, 64, 65, 89}) {
        CAPTURE(poison);
        CAPTURE(i);
        const Inputs in = inputs_of(c, DType::f32);
        const int64_t position = c.Lk - c.Lq + i;
        const auto tail = [&](const Tensor& x, int64_t first) {
          return x.view(x.shape().with(2, x.dim(2) - first), x.strides(), first * x.strides()[2]);
        };
        for (const Tensor& x : {tail(in.q, i), tail(in.k, position), tail(in.v, position)}) x.fill(poison);
        const Tensor after = causal_attention(in.q, in.k, in.v, {}, options_of(c)).contiguous();
        const auto head = [&](const Tensor& y) { return y.view(y.shape().with(2, i), y.strides()); };
        CHECK(same_bits(head(after), head(before)));
        CHECK_FALSE(same_bits(after, before));
      }
    }
  }
}

TEST_CASE("causal attention: gradients of the future do not reach the past, not even as NaN") {
  const AttentionCase c{1, 1, 150, 150, 8, 40};
  const auto gradients = [&](double poison, int64_t first, int64_t count) {
    Inputs in = inputs_of(c, DType::f32);
    const Tensor dy = in.dy.view(in.dy.shape().with(2, count), in.dy.strides(), first * in.dy.strides()[2]);
    dy.fill(poison);
    Tensors leaves{in.q.detach(), in.k.detach(), in.v.detach()};
    for (Tensor& leaf : leaves) leaf.set_requires_grad();
    causal_attention(leaves[0], leaves[1], leaves[2], {}, options_of(c)).backward(in.dy);
    return Tensors{leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
  };
  // Only queries 20 ... 29 get NaN, so only keys 0 ... 29 may: key 30 is in their future.
  const Tensors clean = gradients(0, 20, 10), poisoned = gradients(std::numeric_limits<double>::quiet_NaN(), 20, 10);
  const auto rows_from = [](const Tensor& x, int64_t first) {
    return x.view(x.shape().with(2, x.dim(2) - first), x.strides(), first * x.strides()[2]);
  };
  for (size_t i = 0; i < 3; ++i) CHECK(same_bits(rows_from(poisoned[i], 30), rows_from(clean[i], 30)));
  CHECK(std::isnan(poisoned[1].to_vector<float>()[29 * 8]));
}

TEST_CASE("causal attention: the number of threads does not change a bit") {
  const int before = num_threads();
  // Few heads: tiles of queries in groups, or keys in parts. Many heads: several to a piece.
  for (const AttentionCase& c : {AttentionCase{1, 2, 300, 300, 20, 0, true}, AttentionCase{1, 1, 20, 2300, 32},
                                 AttentionCase{30, 3, 40, 40, 16, 7, true}}) {
    CAPTURE(title(c));
    const auto run = [&](int threads) {
      set_num_threads(threads);
      const Inputs in = inputs_of(c, DType::f32);
      Tensors leaves{in.q.detach(), in.k.detach(), in.v.detach(), c.beta ? in.beta : Tensor()};
      for (Tensor& leaf : leaves)
        if (leaf.defined()) leaf.set_requires_grad();
      const Tensor y = causal_attention(leaves[0], leaves[1], leaves[2], leaves[3], options_of(c));
      y.backward(in.dy);
      Tensors results{y.detach()};
      for (const Tensor& leaf : leaves)
        if (leaf.defined()) results.push_back(leaf.grad());
      return results;
    };
    const Tensors expected = run(1);
    for (const int threads : {2, 3}) {
      const Tensors got = run(threads);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("causal attention: very large scores neither overflow nor lose the largest") {
  const Tensor q = full({1, 1, 3, 2}, 100, DType::f32), k = full({1, 1, 3, 2}, 100, DType::f32);
  k.view({1, 1, 1, 2}, k.strides(), 2).fill(101);
  const Tensor v = from_values<float>({1, 1, 2, 2, 3, 3}, {1, 1, 3, 2});
  const auto y = causal_attention(q, k, v, {}, {.scale = 10}).to_vector<float>();
  CHECK(y == std::vector<float>{1, 1, 2, 2, 2, 2});
}

TEST_CASE("causal attention: the heads of the result lie side by side, gradients in one buffer") {
  Inputs in = inputs_of({2, 3, 5, 5, 4}, DType::f32);
  Tensors leaves{in.q.detach(), in.k.detach(), in.v.detach()};
  Tensors seen(3);
  const Tensor y = causal_attention(leaves[0].set_requires_grad(), leaves[1].set_requires_grad(),
                                    leaves[2].set_requires_grad(), {}, {.scale = 0.5});
  CHECK(y.shape() == Shape{2, 3, 5, 4});
  CHECK(y.strides() == Shape{60, 4, 12, 1});
  for (size_t i = 0; i < 3; ++i)
    leaves[i].register_hook([&seen, i](const Tensor& gradient) {
      seen[i] = gradient;
      return Tensor();
    });
  y.backward(in.dy);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(seen[i].strides() == Shape{180, 4, 36, 1});
    CHECK(seen[i].offset() == static_cast<int64_t>(i) * 12);
    CHECK(seen[i].storage() == seen[0].storage());
  }
}

TEST_CASE("causal attention says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor q = t({2, 3, 4, 5});
  const auto refused = [&](const char* arg, const auto& call) {
    try {
      call();
    } catch (const OpError& error) {
      CHECK(error.op() == "causal_attention");
      CHECK(error.arg() == arg);
      return;
    }
    FAIL("accepted a wrong " << arg);
  };
  refused("q", [&] { causal_attention({}, q, q, {}, {}); });
  refused("q", [&] { causal_attention(t({2, 3, 4, 5}, DType::i32), q, q, {}, {}); });
  refused("q", [&] { causal_attention(t({3, 4, 5}), q, q, {}, {}); });
  refused("k", [&] { causal_attention(q, t({2, 3, 3, 5}), q, {}, {}); });
  refused("k", [&] { causal_attention(q, t({2, 3, 4, 6}), q, {}, {}); });
  refused("k", [&] { causal_attention(q, t({3, 4, 5}), q, {}, {}); });
  refused("k", [&] { causal_attention(q, t({2, 3, 4, 5}, DType::f64), q, {}, {}); });
  refused("v", [&] { causal_attention(q, q, t({2, 3, 5, 5}), {}, {}); });
  refused("beta", [&] { causal_attention(q, q, q, t({2}), {}); });
  refused("beta", [&] { causal_attention(q, q, q, t({3}, DType::f64), {}); });
  refused("window", [&] { causal_attention(q, q, q, {}, {.window = -1}); });
  refused("dropout", [&] { causal_attention(q, q, q, {}, {.dropout = 1}); });
  refused("rng", [&] { causal_attention(q, q, q, {}, {.dropout = 0.5}); });
  refused("rng", [&] { causal_attention(q, q, q, {}, {.dropout = 0.5, .rng = t({2}, DType::i32)}); });
}

}  // namespace margay::test
