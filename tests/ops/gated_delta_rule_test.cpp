// gated_delta_rule against the matrix form of its recurrence in f64, and what the op table cannot express: states that
// join stretches, that the future is invisible to the bit, strong decays, and what is refused.

#include "ops/gated_delta_rule.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/parallel.h"
#include "ops/binary.h"
#include "ops/linear_attention.h"
#include "ops/reduce.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

using kernels::Decay;

struct Case {
  int64_t B, H, T, f, dv;
  Decay decay = Decay::none;
  bool beta = false;
};

constexpr Decay kDecays[] = {Decay::none, Decay::head, Decay::feature};

std::string title(const Case& c) {
  return "B " + std::to_string(c.B) + ", H " + std::to_string(c.H) + ", T " + std::to_string(c.T) + ", f " +
         std::to_string(c.f) + ", dv " + std::to_string(c.dv) + ", decay " + std::to_string(static_cast<int>(c.decay)) +
         (c.beta ? ", beta" : "");
}

// Inputs with the heads side by side in memory, as they come from projections. Keys are shorter than 1, so that
// corrections do not grow.
struct Inputs {
  Tensor q, k, v, log_decay, beta, dy;

  explicit Inputs(const Case& c, DType dtype = DType::f64) {
    const auto heads = [&](int64_t width, uint64_t seed, double low, double high) {
      return transpose(random_uniform({c.B, c.T, c.H, width}, seed, low, high, dtype), 1, 2).detach();
    };
    const double longest = 1 / std::sqrt(static_cast<double>(c.f));
    q = heads(c.f, 1, -1, 1);
    k = heads(c.f, 2, -longest, longest);
    v = heads(c.dv, 3, -1, 1);
    dy = heads(c.dv, 4, -1, 1);
    if (c.decay == Decay::head) log_decay = select(heads(1, 5, -0.5, 0), 3, 0).detach();
    if (c.decay == Decay::feature) log_decay = heads(c.f, 5, -0.5, 0);
    if (c.beta) beta = select(heads(1, 6, 0, 1), 3, 0).detach();
  }
  Tensors leaves() const {
    Tensors all{q.detach(), k.detach(), v.detach()};
    for (const Tensor& x : {log_decay, beta}) all.push_back(x.defined() ? x.detach() : x);
    for (Tensor& leaf : all)
      if (leaf.defined()) leaf.set_requires_grad();
    return all;
  }
};

// y of the whole: S <- (I - beta k k^T) diag(decay) S + beta k v^T.
Tensor reference(const Case& c, const Inputs& in) {
  const Elements q(in.q), k(in.k), v(in.v);
  const Elements decay(in.log_decay.defined() ? in.log_decay : zeros({c.B, c.H, c.T}, DType::f64));
  const Elements beta(in.beta.defined() ? in.beta : ones({c.B, c.H, c.T}, DType::f64));
  Elements y(Shape{c.B, c.H, c.T, c.dv});
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t h = 0; h < c.H; ++h) {
      Elements state(Shape{c.f, c.dv});
      for (int64_t t = 0; t < c.T; ++t) {
        const double rate = beta({b, h, t});
        for (int64_t j = 0; j < c.dv; ++j) {
          double held = 0;
          for (int64_t d = 0; d < c.f; ++d) {
            state({d, j}) *= std::exp(c.decay == Decay::feature ? decay({b, h, t, d}) : decay({b, h, t}));
            held += k({b, h, t, d}) * state({d, j});
          }
          for (int64_t d = 0; d < c.f; ++d)
            state({d, j}) += k({b, h, t, d}) * (rate * v({b, h, t, j}) - (c.beta ? rate * held : 0));
          for (int64_t d = 0; d < c.f; ++d) y({b, h, t, j}) += q({b, h, t, d}) * state({d, j});
        }
      }
    }
  return y.to_tensor(DType::f64);
}

void check_against_reference(const Case& c) {
  CAPTURE(title(c));
  const Tensor expected = reference(c, Inputs(c));
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Inputs in(c, dtype);
    CHECK(difference_relative_to_max(gated_delta_rule(in.q, in.k, in.v, in.log_decay, in.beta), expected,
                                     dtype == DType::f64 ? 1e-12 : 2e-5) == "");
  }
}

}  // namespace

TEST_CASE("gated delta rule equals its recurrence") {
  for (const Decay decay : kDecays)
    for (const bool beta : {false, true}) {
      for (const int64_t T : {1, 2, 3, 7, 64, 1000}) check_against_reference({1, 2, T, 4, 5, decay, beta});
      for (const int64_t dv : {1, 8, 16, 17, 64, 100}) check_against_reference({2, 1, 9, 5, dv, decay, beta});
      for (const int64_t f : {1, 16, 33}) check_against_reference({1, 3, 40, f, 20, decay, beta});
    }
}

TEST_CASE("gated delta rule without decay and correction is linear attention, and so are its gradients") {
  const Case c{2, 3, 150, 6, 18};
  const Inputs in(c);
  const Tensors ours = in.leaves(), theirs = in.leaves();
  const Tensor y = gated_delta_rule(ours[0], ours[1], ours[2], {}, {});
  const Tensor expected = linear_attention(theirs[0], theirs[1], theirs[2], {});
  y.backward(in.dy);
  expected.backward(in.dy);
  CHECK(difference_relative_to_max(y.detach(), expected.detach(), 1e-13) == "");
  for (size_t i = 0; i < 3; ++i) CHECK(difference_relative_to_max(ours[i].grad(), theirs[i].grad(), 1e-13) == "");
}

TEST_CASE("gated delta rule: gradients of long sequences equal central differences, in f32 those in f64") {
  for (const Decay decay : kDecays) {
    const Case c{1, 2, 200, 4, 20, decay, true};
    CAPTURE(title(c));
    const Inputs in(c), single(c, DType::f32);
    const Tensors leaves = in.leaves(), singles = single.leaves();
    gated_delta_rule(leaves[0], leaves[1], leaves[2], leaves[3], leaves[4]).backward(in.dy);
    gated_delta_rule(singles[0], singles[1], singles[2], singles[3], singles[4]).backward(single.dy);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (!leaves[i].defined()) continue;
      CAPTURE(i);
      CHECK(difference_relative_to_max(singles[i].grad(), leaves[i].grad(), 2e-5) == "");
      // Along one random direction of each input.
      const NoGrad no_grad;
      const Tensor direction = random_uniform(leaves[i].shape(), 30 + i);
      const auto loss = [&](double step) {
        Tensors moved = leaves;
        moved[i] = add(leaves[i].detach(), mul(direction, step));
        return sum(mul(gated_delta_rule(moved[0], moved[1], moved[2], moved[3], moved[4]), in.dy)).item();
      };
      const double expected = (loss(1e-5) - loss(-1e-5)) / 2e-5;
      CHECK(sum(mul(leaves[i].grad(), direction)).item() == doctest::Approx(expected).epsilon(1e-6));
    }
  }
}

TEST_CASE("gated delta rule of stretches is that of the whole, and so are its gradients") {
  for (const Decay decay : kDecays) {
    const Case c{2, 2, 100, 4, 6, decay, decay != Decay::feature};
    CAPTURE(title(c));
    const Inputs in(c);
    const Tensors whole = in.leaves(), parts = in.leaves();
    const Tensor expected = gated_delta_rule(whole[0], whole[1], whole[2], whole[3], whole[4]);
    expected.backward(in.dy);
    Tensor state;
    int64_t begin = 0;
    for (const int64_t length : {35, 1, 0, 2, 62}) {
      const auto part = [&](const Tensor& x) { return x.defined() ? slice(x, 2, begin, begin + length) : x; };
      const auto result = gated_delta_rule_stretch(part(parts[0]), part(parts[1]), part(parts[2]), part(parts[3]),
                                                   part(parts[4]), state);
      CHECK(difference_relative_to_max(result.y.detach(), part(expected).detach(), 1e-12) == "");
      result.y.backward(part(in.dy), true);
      state = result.state;
      begin += length;
    }
    CHECK(begin == c.T);
    for (size_t i = 0; i < whole.size(); ++i)
      if (whole[i].defined()) CHECK(difference_relative_to_max(parts[i].grad(), whole[i].grad(), 1e-11) == "");
  }
}

TEST_CASE("gated delta rule: a token changes nothing before it, not even by a bit, not even as NaN") {
  for (const Decay decay : kDecays) {
    const Case c{1, 2, 70, 4, 21, decay, true};
    CAPTURE(title(c));
    const Inputs clean(c, DType::f32);
    const Tensor before = gated_delta_rule(clean.q, clean.k, clean.v, clean.log_decay, clean.beta).contiguous();
    for (const double poison : {0.3, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL})
      for (const int64_t t : {1, 31, 32, 65}) {
        const Inputs in(c, DType::f32);
        for (const Tensor& x : {in.q, in.k, in.v, in.log_decay, in.beta})
          if (x.defined()) slice(x, 2, t, c.T).fill(poison);
        const Tensor after = gated_delta_rule(in.q, in.k, in.v, in.log_decay, in.beta).contiguous();
        CHECK(same_bits(slice(after, 2, 0, t).contiguous(), slice(before, 2, 0, t).contiguous()));
        CHECK_FALSE(same_bits(after, before));
      }
  }
}

TEST_CASE("gated delta rule: decays of any strength neither overflow nor make NaN") {
  const Case c{1, 1, 80, 3, 4, Decay::feature};
  const Inputs in(c, DType::f32);
  in.log_decay.fill(-HUGE_VAL);
  Tensors leaves = in.leaves();
  leaves[3] = full(leaves[3].shape(), -300, DType::f32).set_requires_grad();
  const Tensor y = gated_delta_rule(leaves[0], leaves[1], leaves[2], leaves[3], {});
  // Everything before is forgotten: y = (q . k) v.
  const Tensor expected = mul(sum(mul(in.q, in.k), {-1}, true), in.v);
  CHECK(difference(y.detach(), expected.detach(), 1e-6) == "");
  CHECK(difference(gated_delta_rule(in.q, in.k, in.v, in.log_decay, {}), expected.detach(), 1e-6) == "");
  y.backward(in.dy);
  for (size_t i = 0; i < 4; ++i)
    for (const float value : leaves[i].grad().to_vector<float>()) CHECK(std::isfinite(value));
}

TEST_CASE("gated delta rule: the number of threads does not change a bit") {
  const int before = num_threads();
  const Case c{9, 8, 70, 16, 24, Decay::head, true};
  const auto run = [&](int threads) {
    set_num_threads(threads);
    const Inputs in(c, DType::f32);
    const Tensors leaves = in.leaves();
    const Tensor y = gated_delta_rule(leaves[0], leaves[1], leaves[2], leaves[3], leaves[4]);
    y.backward(in.dy);
    Tensors results{y.detach()};
    for (const Tensor& leaf : leaves) results.push_back(leaf.grad());
    return results;
  };
  const Tensors expected = run(1);
  for (const int threads : {2, 3}) {
    const Tensors got = run(threads);
    for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
  }
  set_num_threads(before);
}

TEST_CASE("gated delta rule says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor q = t({2, 3, 4, 5}), v = t({2, 3, 4, 6});
  const auto refused = [&](const std::string& arg, const auto& call) {
    CAPTURE(arg);
    CHECK(op_error(call).find("gated_delta_rule: " + arg + " must be") == 0);
  };
  refused("q", [&] { gated_delta_rule({}, q, v, {}, {}); });
  refused("q", [&] { gated_delta_rule(t({3, 4, 5}), q, v, {}, {}); });
  refused("k", [&] { gated_delta_rule(q, t({2, 3, 4, 6}), v, {}, {}); });
  refused("v", [&] { gated_delta_rule(q, q, t({2, 3, 5, 6}), {}, {}); });
  refused("v", [&] { gated_delta_rule(q, q, t({2, 3, 4}), {}, {}); });
  refused("log_decay", [&] { gated_delta_rule(q, q, v, t({2, 3, 5}), {}); });
  refused("log_decay", [&] { gated_delta_rule(q, q, v, t({2, 3, 4, 6}), {}); });
  refused("log_decay", [&] { gated_delta_rule(q, q, v, t({2, 3, 4}, DType::f64), {}); });
  refused("beta", [&] { gated_delta_rule(q, q, v, {}, t({2, 3, 4, 1})); });
  refused("initial", [&] { gated_delta_rule_stretch(q, q, v, {}, {}, t({2, 3, 6, 5})); });
}

}  // namespace margay::test
