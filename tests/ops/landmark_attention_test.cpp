// landmark_attention against its definition in plain f64 loops, its gradients included; its identities with ordinary
// attention; and what the op table cannot express: that the future is invisible to the bit, and what is refused.

#include "ops/landmark_attention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/parallel.h"
#include "ops/causal_attention.h"
#include "ops/dropout.h"
#include "ops/landmark_choice.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

constexpr double kScale = 0.7;

struct Case {
  int64_t B, H, Lq, Lk, dh, W;
  int64_t K = -1;  // -1: all blocks
  LandmarkGate gate = LandmarkGate::grouped;
  bool own_query = true, per_head = true;  // landmark_q; bias and beta
  double dropout = 0;
};

std::string title(const Case& c) {
  return "B " + std::to_string(c.B) + ", H " + std::to_string(c.H) + ", Lq " + std::to_string(c.Lq) + ", Lk " +
         std::to_string(c.Lk) + ", dh " + std::to_string(c.dh) + ", W " + std::to_string(c.W) + ", K " +
         std::to_string(c.K) + ", gate " + std::to_string(static_cast<int>(c.gate)) + ", dropout " +
         std::to_string(c.dropout);
}

LandmarkAttentionOptions options_of(const Case& c) {
  LandmarkAttentionOptions options{.block_size = c.W, .gate = c.gate, .scale = kScale, .dropout = c.dropout};
  options.stream = 9;
  if (c.dropout > 0) options.rng = from_values<int64_t>({42, 7}, {2});
  return options;
}

// q, k, v as heads of packed buffers.
LandmarkAttentionInputs inputs_of(const Case& c, DType dtype) {
  const auto heads = [&](int64_t rows, uint64_t seed) {
    const Tensor packed = random_uniform({c.B, rows, 2, c.H, c.dh}, seed, -1.5, 1.5, dtype);
    return packed.view({c.B, c.H, rows, c.dh}, {rows * 2 * c.H * c.dh, c.dh, 2 * c.H * c.dh, 1}, c.H * c.dh);
  };
  LandmarkAttentionInputs in;
  in.q = heads(c.Lq, 1);
  in.k = heads(c.Lk, 2);
  in.v = heads(c.Lk, 3);
  if (c.own_query) in.landmark_q = heads(c.Lq, 4);
  in.landmarks = heads(c.Lk / c.W, 5);
  if (c.per_head) in.bias = random_uniform({c.H}, 6, -1, 1, dtype);
  if (c.per_head) in.beta = random_uniform({c.H}, 7, 0.3, 1, dtype);
  if (c.K >= 0)
    in.blocks =
        landmark_choice(random_uniform(in.q.shape(), 8), random_uniform(in.landmarks.shape(), 9), c.Lk, c.W, c.K);
  return in;
}

// The definition of one query: what it sees, as (key, block or -1 for its own one).
struct Seen {
  std::vector<int64_t> keys, blocks;
};
Seen seen_by(const Case& c, const std::vector<int32_t>& lists, int64_t row) {
  Seen seen;
  const int64_t position = c.Lk - c.Lq + row % c.Lq, own = position / c.W;
  std::vector<int64_t> blocks;
  const auto listed = [&](int64_t m) {
    const auto begin = lists.begin() + static_cast<long>(row * c.K), end = begin + static_cast<long>(c.K);
    return std::find(begin, end, m) != end;
  };
  for (int64_t m = 0; m < own; ++m)
    if (c.K < 0 || listed(m)) blocks.push_back(m);
  for (const int64_t m : blocks)
    for (int64_t j = m * c.W; j < (m + 1) * c.W; ++j) seen.keys.push_back(j), seen.blocks.push_back(m);
  for (int64_t j = own * c.W; j <= position; ++j) seen.keys.push_back(j), seen.blocks.push_back(-1);
  return seen;
}

// Weights of tokens as in the contract, and the derivative of sum_j w_j dw_j by scores and by logits.
struct Weights {
  std::vector<double> w, ds, dg;  // dg by token: of its block, divided among its tokens arbitrarily (all on the first)
};
Weights weigh(LandmarkGate gate, const Seen& seen, const std::vector<double>& s, const std::vector<double>& g,
              const std::vector<double>& dw) {
  const size_t n = s.size();
  Weights r{std::vector<double>(n), std::vector<double>(n), std::vector<double>(n)};
  double total = 0, mean = 0;
  std::vector<double> inside(n, 0), block_sum(n, 0), block_mean(n, 0);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j)
      if (seen.blocks[i] == seen.blocks[j]) block_sum[i] += std::exp(s[j]);
  for (size_t i = 0; i < n; ++i) {
    const bool own = seen.blocks[i] < 0;
    inside[i] = std::exp(s[i]) / block_sum[i];
    r.w[i] = own || gate == LandmarkGate::none ? std::exp(s[i])
             : gate == LandmarkGate::additive  ? std::exp(s[i] + g[i])
                                               : std::exp(g[i]) * inside[i];
    total += r.w[i];
  }
  for (size_t i = 0; i < n; ++i) mean += (r.w[i] /= total) * dw[i];
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j)
      if (seen.blocks[i] == seen.blocks[j]) block_mean[i] += inside[j] * dw[j];
  for (size_t i = 0; i < n; ++i) {
    const bool own = seen.blocks[i] < 0, grouped = !own && gate == LandmarkGate::grouped;
    r.ds[i] = r.w[i] * (dw[i] - (grouped ? block_mean[i] : mean));
    if (own || gate == LandmarkGate::none) continue;
    // Summed over the block: P_m (D_m - D) either way.
    r.dg[i] = r.w[i] * (dw[i] - mean);
  }
  return r;
}

// y and the gradients of sum(y dy), in the order of the inputs.
struct Reference {
  Elements y, dq, dk, dv, dlq, dl, dbias, dbeta;
};
Reference reference(const Case& c, const LandmarkAttentionInputs& in, const Tensor& dy_values) {
  const Elements q(in.q), k(in.k), v(in.v), lq(c.own_query ? in.landmark_q : in.q), l(in.landmarks), dy(dy_values);
  const auto lists = in.blocks.defined() ? in.blocks.to_vector<int32_t>() : std::vector<int32_t>();
  Reference r{Elements(in.q.shape()), Elements(in.q.shape()),         Elements(in.k.shape()), Elements(in.k.shape()),
              Elements(in.q.shape()), Elements(in.landmarks.shape()), Elements({c.H}),        Elements({c.H})};
  const std::vector<double> factors = [&] {
    std::vector<double> all(static_cast<size_t>(c.B * c.H * c.Lq * c.Lk), 1.0);
    if (c.dropout == 0) return all;
    const LandmarkAttentionOptions options = options_of(c);
    const DropoutMask mask = DropoutMask::make(options.rng.data<int64_t>(), options.stream, c.dropout);
    for (size_t i = 0; i < all.size(); ++i) all[i] = mask.keeps_element(i) ? 1 / (1 - c.dropout) : 0;
    return all;
  }();
  for (int64_t row = 0; row < c.B * c.H * c.Lq; ++row) {
    const int64_t b = row / c.Lq / c.H, h = row / c.Lq % c.H, i = row % c.Lq;
    const double beta = c.per_head ? Elements(in.beta)({h}) : kScale, bias = c.per_head ? Elements(in.bias)({h}) : 0;
    const auto dot = [&](const Elements& x, int64_t at_x, const Elements& y, int64_t at_y) {
      double sum = 0;
      for (int64_t d = 0; d < c.dh; ++d) sum += x({b, h, at_x, d}) * y({b, h, at_y, d});
      return sum;
    };
    const Seen seen = seen_by(c, lists, row);
    std::vector<double> s, g, dw;
    for (size_t n = 0; n < seen.keys.size(); ++n) {
      s.push_back(beta * dot(q, i, k, seen.keys[n]));
      g.push_back(seen.blocks[n] < 0 ? 0 : dot(lq, i, l, seen.blocks[n]) + bias);
      dw.push_back(factors[static_cast<size_t>(row * c.Lk + seen.keys[n])] * dot(dy, i, v, seen.keys[n]));
    }
    const Weights weights = weigh(c.gate, seen, s, g, dw);
    for (size_t n = 0; n < seen.keys.size(); ++n) {
      const int64_t j = seen.keys[n], m = seen.blocks[n];
      const double weight = weights.w[n] * factors[static_cast<size_t>(row * c.Lk + j)];
      r.dbeta({h}) += weights.ds[n] * s[n] / beta;
      for (int64_t d = 0; d < c.dh; ++d) {
        r.y({b, h, i, d}) += weight * v({b, h, j, d});
        r.dv({b, h, j, d}) += weight * dy({b, h, i, d});
        r.dq({b, h, i, d}) += beta * weights.ds[n] * k({b, h, j, d});
        r.dk({b, h, j, d}) += beta * weights.ds[n] * q({b, h, i, d});
        if (m < 0) continue;
        (c.own_query ? r.dlq : r.dq)({b, h, i, d}) += weights.dg[n] * l({b, h, m, d});
        r.dl({b, h, m, d}) += weights.dg[n] * lq({b, h, i, d});
      }
      if (m >= 0) r.dbias({h}) += weights.dg[n];
    }
  }
  return r;
}

// Leaves with the same memory.
LandmarkAttentionInputs leaves_of(const LandmarkAttentionInputs& in) {
  const auto leaf = [](const Tensor& x) {
    if (!x.defined()) return x;
    Tensor copy = x.detach();
    return copy.set_requires_grad();
  };
  return {leaf(in.q),         leaf(in.k),    leaf(in.v),    leaf(in.landmark_q),
          leaf(in.landmarks), leaf(in.bias), leaf(in.beta), in.blocks};
}

void check_against_reference(const Case& c) {
  CAPTURE(title(c));
  const Tensor dy64 = random_uniform({c.B, c.H, c.Lq, c.dh}, 10);
  const Reference expected = reference(c, inputs_of(c, DType::f64), dy64);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : 3e-5;
    const LandmarkAttentionInputs in = leaves_of(inputs_of(c, dtype));
    const Tensor y = landmark_attention(in, options_of(c));
    y.backward(dy64.to(dtype));
    CHECK(difference(y, expected.y.to_tensor(dtype), tolerance) == "");
    const auto check = [&](const char* name, const Tensor& leaf, const Elements& gradient) {
      CAPTURE(name);
      if (!leaf.defined()) return;
      const Tensor got = leaf.grad().defined() ? leaf.grad() : zeros_like(leaf);
      // What belongs to a head is a sum over all queries and keys, whose terms nearly cancel.
      const double rounding = leaf.ndim() == 1 ? 2 * tolerance : tolerance;
      CHECK(difference(got, gradient.to_tensor(dtype), rounding) == "");
    };
    check("q", in.q, expected.dq);
    check("k", in.k, expected.dk);
    check("v", in.v, expected.dv);
    check("landmark_q", in.landmark_q, expected.dlq);
    check("landmarks", in.landmarks, expected.dl);
    check("bias", in.bias, expected.dbias);
    check("beta", in.beta, expected.dbeta);
  }
}

constexpr LandmarkGate kGates[] = {LandmarkGate::grouped, LandmarkGate::additive, LandmarkGate::none};

}  // namespace

TEST_CASE("landmark attention equals its definition, and so do its gradients") {
  for (const LandmarkGate gate : kGates) {
    for (const int64_t L : {1, 2, 3, 7, 64})
      for (const int64_t W : {1, 3, 16})
        for (const int64_t K : {-1, 0, 2}) check_against_reference({2, 1, L, L, 5, W, K, gate});
    for (const int64_t dh : {1, 8, 17, 64, 81}) check_against_reference({1, 2, 40, 40, dh, 8, 2, gate, dh != 8});
    for (const int64_t W : {4, 15, 16, 33, 70}) check_against_reference({1, 1, 130, 130, 8, W, 1, gate, false, false});
    for (const int64_t Lq : {1, 2, 20}) {
      check_against_reference({2, 2, Lq, 75, 20, 8, 3, gate});
      check_against_reference({1, 3, Lq, 70, 6, 9, -1, gate, false});
    }
    check_against_reference({5, 4, 33, 33, 8, 4, 2, gate});  // more heads than pieces for one group each
  }
  check_against_reference({1, 1, 1000, 1000, 3, 32, 2, LandmarkGate::grouped, false});
  check_against_reference({1, 1, 300, 300, 3, 16, -1});
}

TEST_CASE("landmark attention drops the weights that the dropout mask says") {
  for (const LandmarkGate gate : kGates) {
    check_against_reference({2, 2, 7, 7, 4, 2, 1, gate, true, true, 0.5});
    check_against_reference({1, 1, 90, 131, 8, 70, -1, gate, true, true, 0.2});  // blocks longer than a mask's
  }
}

TEST_CASE("landmark attention: a landmark whose logit is its block's share makes it plain attention") {
  // Grouped, with g_m = log of the sum over block m of exp(s_j), which differs by query: one query at a time, its
  // landmark_q the unit vector (1, 0, ...) and its landmarks (g_m, 0, ...).
  const int64_t L = 37, W = 5, dh = 6, M = L / W;
  const Tensor q = random_uniform({1, 1, L, dh}, 1, -2, 2), k = random_uniform({1, 1, L, dh}, 2, -2, 2),
               v = random_uniform({1, 1, L, dh}, 3);
  const Tensor expected = causal_attention(q, k, v, {}, {.scale = kScale}).contiguous();
  const Elements eq(q), ek(k);
  const Tensor unit = from_function({1, 1, 1, dh}, DType::f64, [](const Index& at) { return at[3] == 0 ? 1.0 : 0.0; });
  for (int64_t t = 0; t < L; ++t) {
    const int64_t keys = t + 1;
    const Tensor landmarks = from_function({1, 1, keys / W, dh}, DType::f64, [&](const Index& at) {
      if (at[3] != 0) return 0.0;
      double sum = 0;
      for (int64_t j = at[2] * W; j < (at[2] + 1) * W; ++j) {
        double score = 0;
        for (int64_t d = 0; d < dh; ++d) score += kScale * eq({0, 0, t, d}) * ek({0, 0, j, d});
        sum += std::exp(score);
      }
      return std::log(sum);
    });
    LandmarkAttentionInputs in{
        slice(q, 2, t, t + 1), slice(k, 2, 0, keys), slice(v, 2, 0, keys), unit, landmarks, {}, {}, {}};
    const Tensor y = landmark_attention(in, {.block_size = W, .scale = kScale});
    CHECK(difference(y.contiguous(), slice(expected, 2, t, t + 1).contiguous(), 1e-14) == "");
  }
  // Without a gate, all blocks are all keys.
  LandmarkAttentionInputs in{q, k, v, {}, zeros({1, 1, M, dh}, DType::f64), {}, {}, {}};
  const Tensor y = landmark_attention(in, {.block_size = W, .gate = LandmarkGate::none, .scale = kScale});
  CHECK(difference(y.contiguous(), expected, 1e-14) == "");
}

TEST_CASE("landmark attention: a list of all blocks gives what no list gives") {
  for (const LandmarkGate gate : kGates) {
    const Case c{2, 2, 70, 70, 12, 8, 8, gate};
    LandmarkAttentionInputs in = inputs_of(c, DType::f32);
    const Tensor listed = landmark_attention(in, options_of(c));
    in.blocks = {};
    CHECK(same_bits(landmark_attention(in, options_of(c)).contiguous(), listed.contiguous()));
  }
}

TEST_CASE("landmark attention ignores entries that are no blocks before the query") {
  Case c{1, 1, 20, 20, 4, 4, 2};
  LandmarkAttentionInputs in = inputs_of(c, DType::f32);
  in.blocks = full({1, 1, 20, 2}, -1, DType::i32);
  const Tensor expected = landmark_attention(in, options_of(c)).contiguous();
  for (const int32_t entry : {-7, 5, 1 << 30}) {
    in.blocks = full({1, 1, 20, 2}, entry, DType::i32);
    CHECK(same_bits(landmark_attention(in, options_of(c)).contiguous(), expected));
  }
}

TEST_CASE("landmark attention: a token changes nothing before it, not even by a bit, not even as NaN") {
  for (const Case& c : {Case{1, 2, 150, 150, 16, 16}, Case{1, 1, 150, 150, 5, 7, 2}, Case{1, 1, 90, 300, 8, 16, 3}}) {
    CAPTURE(title(c));
    const Tensor before = landmark_attention(inputs_of(c, DType::f32), options_of(c)).contiguous();
    for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      for (const int64_t i : {1, 15, 16, 63, 64, 65, 89}) {
        CAPTURE(poison);
        CAPTURE(i);
        LandmarkAttentionInputs in = inputs_of(c, DType::f32);
        const int64_t position = c.Lk - c.Lq + i;
        const auto tail = [&](const Tensor& x, int64_t first) {
          return x.view(x.shape().with(2, x.dim(2) - first), x.strides(), first * x.strides()[2]);
        };
        for (const Tensor& x : {tail(in.q, i), tail(in.landmark_q, i), tail(in.k, position), tail(in.v, position)})
          x.fill(poison);
        if (position / c.W < in.landmarks.dim(2)) tail(in.landmarks, position / c.W).fill(poison);
        // Later queries choose other blocks.
        if (c.K >= 0) slice(in.blocks, 2, i, c.Lq).fill(0);
        const Tensor after = landmark_attention(in, options_of(c)).contiguous();
        const auto head = [&](const Tensor& y) { return slice(y, 2, 0, i).contiguous(); };
        CHECK(same_bits(head(after), head(before)));
        CHECK_FALSE(same_bits(after, before));
      }
    }
  }
}

TEST_CASE("landmark attention: the number of threads does not change a bit") {
  const int before = num_threads();
  // Few heads: tiles of queries in groups. Many heads: several to a piece.
  for (const Case& c : {Case{1, 2, 700, 700, 20, 16, 2}, Case{1, 1, 500, 530, 32, 32}, Case{30, 3, 40, 40, 16, 7, 1}}) {
    CAPTURE(title(c));
    const auto run = [&](int threads) {
      set_num_threads(threads);
      const LandmarkAttentionInputs in = leaves_of(inputs_of(c, DType::f32));
      const Tensor y = landmark_attention(in, options_of(c));
      y.backward(random_uniform(y.shape(), 10, -1, 1, DType::f32));
      return Tensors{y.detach(),           in.q.grad(),         in.k.grad(),    in.v.grad(),
                     in.landmark_q.grad(), in.landmarks.grad(), in.bias.grad(), in.beta.grad()};
    };
    const Tensors expected = run(1);
    for (const int threads : {2, 3}) {
      const Tensors got = run(threads);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("landmark attention: very large scores neither overflow nor lose the largest") {
  for (const LandmarkGate gate : kGates) {
    const Tensor q = full({1, 1, 6, 2}, 100), k = full({1, 1, 6, 2}, 100);
    k.view({1, 1, 1, 2}, k.strides(), 2).fill(101);
    const Tensor v = from_values<float>({1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6}, {1, 1, 6, 2});
    const Tensor landmarks = from_values<float>({2000, 2000, 0, 0}, {1, 1, 2, 2});
    const auto y =
        landmark_attention({q, k, v, {}, landmarks, {}, {}, {}}, {.block_size = 3, .gate = gate, .scale = 10});
    CHECK(y.to_vector<float>() == std::vector<float>{1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2});
  }
}

TEST_CASE("landmark attention says what is wrong with its arguments") {
  const Tensor q = zeros({2, 3, 8, 4}), landmarks = zeros({2, 3, 4, 4});
  const LandmarkAttentionInputs good{q, q, q, {}, landmarks, {}, {}, {}};
  const auto message = [&](const auto& change) {
    LandmarkAttentionInputs in = good;
    LandmarkAttentionOptions options{.block_size = 2};
    change(in, options);
    return op_error([&] { landmark_attention(in, options); });
  };
  using In = LandmarkAttentionInputs;
  using Options = LandmarkAttentionOptions;
  CHECK(message([](In&, Options&) {}) == "");
  CHECK(message([](In& in, Options&) {
          in.q = zeros({8, 4});
        }) == "landmark_attention: q must be [B,H,Lq,dh], got f32[8,4]");
  CHECK(message([](In& in, Options&) {
          in.k = zeros({2, 3, 7, 4});
        }) == "landmark_attention: k must be [B,H,Lk,dh] with Lk >= Lq for q f32[2,3,8,4], got f32[2,3,7,4]");
  CHECK(message([](In& in, Options&) {
          in.v = zeros({2, 3, 9, 4});
        }) == "landmark_attention: v must be of the shape of k f32[2,3,8,4], got f32[2,3,9,4]");
  CHECK(message([](In& in, Options&) {
          in.landmark_q = zeros({2, 3, 7, 4});
        }) == "landmark_attention: landmark_q must be of the shape of q f32[2,3,8,4], got f32[2,3,7,4]");
  CHECK(message([](In&, Options& options) { options.block_size = 3; }) ==
        "landmark_attention: landmarks must be [B,H,2,dh] for k f32[2,3,8,4] and blocks of 3, got f32[2,3,4,4]");
  CHECK(message([](In&, Options& options) { options.block_size = 0; }) ==
        "landmark_attention: block_size must be 1 or more, got 0");
  CHECK(message([](In& in, Options&) { in.bias = zeros({2}); }) ==
        "landmark_attention: bias must be [H] for q f32[2,3,8,4], got f32[2]");
  CHECK(message([](In& in, Options&) { in.beta = zeros({3}, DType::f64); }) != "");
  CHECK(message([](In& in, Options&) {
          in.blocks = zeros({2, 3, 7, 1}, DType::i32);
        }) == "landmark_attention: blocks must be i32[B,H,Lq,K] on the device of q f32[2,3,8,4], got i32[2,3,7,1]");
  CHECK(message([](In& in, Options&) { in.blocks = zeros({2, 3, 8, 1}); }) != "");
  CHECK(message([](In& in, Options&) { in.landmarks = {}; }) != "");
  CHECK(message([](In&, Options& options) { options.dropout = 1; }) ==
        "landmark_attention: dropout must be in [0, 1), got 1");
  CHECK(message([](In&, Options& options) { options.dropout = 0.5; }) ==
        "landmark_attention: rng must be i64[2] on the device of q, as there is dropout, got none");
}

}  // namespace margay::test
