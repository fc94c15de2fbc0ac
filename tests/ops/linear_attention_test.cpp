// linear_attention against its definition as a plain double loop in f64, its gradients included, and what the op table
// cannot express: states that join stretches, that the future is invisible to the bit, and what is refused.

#include "ops/linear_attention.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/parallel.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  int64_t B, H, T, f, dv;
  LinearAttentionOptions options;
};

// Normalisers with an eps that counts: the gradients of a single token come from it alone.
constexpr LinearAttentionOptions kPlain{}, kElu{FeatureMap::elu1, true, 0.5}, kSoftmax{FeatureMap::softmax, true, 0.5},
    kTaylor{FeatureMap::taylor2, true, 0.5}, kTaylorSum{FeatureMap::taylor2, false, 0},
    kEluSum{FeatureMap::elu1, false, 0};
constexpr LinearAttentionOptions kAll[] = {kPlain, kElu, kSoftmax, kTaylor, kTaylorSum, kEluSum};

std::string title(const Case& c) {
  return "B " + std::to_string(c.B) + ", H " + std::to_string(c.H) + ", T " + std::to_string(c.T) + ", f " +
         std::to_string(c.f) + ", dv " + std::to_string(c.dv) + ", map " +
         std::to_string(static_cast<int>(c.options.map)) + (c.options.normalise ? ", normalised" : "");
}

// q and k with their heads side by side in memory, as they come from a projection.
Tensor heads(const Case& c, int64_t width, uint64_t seed, DType dtype) {
  return transpose(random_uniform({c.B, c.T, c.H, width}, seed, -1.5, 1.5, dtype), 1, 2).detach();
}

struct Inputs {
  Tensor q, k, v, dy;
};

Inputs inputs_of(const Case& c, DType dtype = DType::f64) {
  return {heads(c, c.f, 1, dtype), heads(c, c.f, 2, dtype), heads(c, c.dv, 3, dtype), heads(c, c.dv, 4, dtype)};
}

using Table = std::vector<double>;

Table mapped(FeatureMap map, const double* x, int64_t f) {
  Table y(x, x + f);
  double sum = 0;
  for (double& value : y) {
    if (map == FeatureMap::elu1) value = value > 0 ? value + 1 : std::exp(value);
    if (map == FeatureMap::softmax) sum += value = std::exp(value);
  }
  if (map == FeatureMap::softmax)
    for (double& value : y) value /= sum;
  return y;
}

void pull_back(FeatureMap map, const Table& y, double* gradient) {
  double mean = 0;
  for (size_t d = 0; d < y.size(); ++d) mean += y[d] * gradient[d];
  for (size_t d = 0; d < y.size(); ++d) {
    if (map == FeatureMap::elu1) gradient[d] *= y[d] > 1 ? 1 : y[d];
    if (map == FeatureMap::softmax) gradient[d] = y[d] * (gradient[d] - mean);
  }
}

struct Reference {
  Table y, dq, dk, dv;
};

// The definition, row by row, without features for taylor2 (a function of q . k) and without states.
Reference reference(const Case& c, const Inputs& in) {
  const auto q = in.q.to_vector<double>(), k = in.k.to_vector<double>(), v = in.v.to_vector<double>(),
             dy = in.dy.to_vector<double>();
  Reference r{Table(v.size()), Table(q.size()), Table(k.size()), Table(v.size())};
  const bool taylor = c.options.map == FeatureMap::taylor2;
  const double scale = taylor ? 1 / std::sqrt(static_cast<double>(c.f)) : 1;
  for (int64_t head = 0; head < c.B * c.H; ++head) {
    std::vector<Table> phi_q, phi_k;
    const auto at = [&](int64_t t, int64_t width) { return static_cast<size_t>((head * c.T + t) * width); };
    for (int64_t t = 0; t < c.T; ++t) {
      phi_q.push_back(mapped(c.options.map, &q[at(t, c.f)], c.f));
      phi_k.push_back(mapped(c.options.map, &k[at(t, c.f)], c.f));
    }
    for (int64_t t = 0; t < c.T; ++t) {
      const Table& query = phi_q[static_cast<size_t>(t)];
      Table score(static_cast<size_t>(t) + 1);
      const auto weight = [&](double x) { return taylor ? 1 + x + x * x / 2 : x; };
      double sum = c.options.eps, delta = 0;
      for (size_t s = 0; s < score.size(); ++s) {
        for (size_t d = 0; d < query.size(); ++d) score[s] += scale * query[d] * phi_k[s][d];
        sum += weight(score[s]);
      }
      const double inverse = c.options.normalise ? 1 / sum : 1;
      for (int64_t e = 0; e < c.dv; ++e) {
        double& y = r.y[at(t, c.dv) + static_cast<size_t>(e)];
        for (size_t s = 0; s < score.size(); ++s)
          y += inverse * weight(score[s]) * v[at(static_cast<int64_t>(s), c.dv) + static_cast<size_t>(e)];
        if (c.options.normalise) delta += y * dy[at(t, c.dv) + static_cast<size_t>(e)];
      }
      for (size_t s = 0; s < score.size(); ++s) {
        const auto key = static_cast<int64_t>(s);
        double gradient = -delta;
        for (size_t e = 0; e < static_cast<size_t>(c.dv); ++e) {
          gradient += dy[at(t, c.dv) + e] * v[at(key, c.dv) + e];
          r.dv[at(key, c.dv) + e] += inverse * weight(score[s]) * dy[at(t, c.dv) + e];
        }
        gradient *= inverse * scale * (taylor ? 1 + score[s] : 1);
        for (size_t d = 0; d < query.size(); ++d) {
          r.dq[at(t, c.f) + d] += gradient * phi_k[s][d];
          r.dk[at(key, c.f) + d] += gradient * query[d];
        }
      }
    }
    for (int64_t t = 0; t < c.T; ++t) {
      pull_back(c.options.map, phi_q[static_cast<size_t>(t)], &r.dq[at(t, c.f)]);
      pull_back(c.options.map, phi_k[static_cast<size_t>(t)], &r.dk[at(t, c.f)]);
    }
  }
  return r;
}

Tensors leaves_of(const Inputs& in) {
  Tensors leaves{in.q.detach(), in.k.detach(), in.v.detach()};
  for (Tensor& leaf : leaves) leaf.set_requires_grad();
  return leaves;
}

void check_against_reference(const Case& c) {
  CAPTURE(title(c));
  const Inputs in = inputs_of(c);
  const Reference expected = reference(c, in);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const std::string type(name_of(dtype));
    CAPTURE(type);
    const double tolerance = dtype == DType::f64 ? 1e-12 : 2e-5;
    const Inputs own = inputs_of(c, dtype);
    const Tensors leaves = leaves_of(own);
    const Tensor y = linear_attention(leaves[0], leaves[1], leaves[2], c.options);
    y.backward(own.dy);
    CHECK(difference_relative_to_max(y, from_values(expected.y, y.shape()), tolerance) == "");
    const std::vector<const Table*> gradients{&expected.dq, &expected.dk, &expected.dv};
    for (size_t i = 0; i < leaves.size(); ++i) {
      CAPTURE(i);
      const Tensor wanted = from_values(*gradients[i], leaves[i].shape());
      CHECK(difference_relative_to_max(leaves[i].grad(), wanted, tolerance) == "");
    }
  }
}

}  // namespace

TEST_CASE("linear attention equals its definition, and so do its gradients") {
  for (const LinearAttentionOptions& options : kAll)
    for (const int64_t T : {1, 2, 3, 7, 64, 1000}) check_against_reference({1, T < 1000 ? 2 : 1, T, 3, 4, options});
  // One chunk of several tiles, where there are many heads; and a little more than one.
  check_against_reference({4, 4, 100, 8, 16, kTaylor});
  check_against_reference({4, 4, 130, 8, 16, kTaylor});
  check_against_reference({8, 2, 65, 20, 36, kElu});
  // A chunk of more than one tile with states.
  check_against_reference({1, 1, 500, 24, 40, kTaylor});
  for (const int64_t width : {1, 16, 17, 33, 64}) check_against_reference({1, 1, 150, width, 70 - width, kEluSum});
  for (const int64_t width : {1, 2, 5, 16, 19}) check_against_reference({2, 1, 140, width, 21, kTaylor});
}

TEST_CASE("linear attention of stretches is that of the whole, and so are its gradients") {
  for (const LinearAttentionOptions& options : kAll) {
    const Case c{2, 3, 200, 4, 6, options};
    CAPTURE(title(c));
    const Inputs in = inputs_of(c);
    const Tensors whole = leaves_of(in), parts = leaves_of(in);
    const Tensor expected = linear_attention(whole[0], whole[1], whole[2], options);
    expected.backward(in.dy);
    LinearAttentionResult result;
    int64_t begin = 0;
    for (const int64_t length : {70, 1, 0, 2, 127}) {
      const auto part = [&](const Tensor& x) { return slice(x, 2, begin, begin + length); };
      result = linear_attention_stretch(part(parts[0]), part(parts[1]), part(parts[2]), result.state, options);
      CHECK(difference_relative_to_max(result.y, part(expected).detach(), 1e-12) == "");
      result.y.backward(part(in.dy), true);
      begin += length;
    }
    CHECK(begin == c.T);
    for (size_t i = 0; i < 3; ++i) CHECK(difference_relative_to_max(parts[i].grad(), whole[i].grad(), 1e-11) == "");
  }
}

TEST_CASE("linear attention: the state is the sum of features times values, then of features") {
  const Case c{1, 1, 3, 2, 1, kElu};
  const Tensor k = from_values<double>({1, -1, 0, 2, -3, 0.5}, {1, 1, 3, 2});
  const Tensor v = from_values<double>({2, 5, -1}, {1, 1, 3, 1});
  const auto state = linear_attention_stretch(k, k, v, {}, c.options).state;
  CHECK(state.shape() == Shape{1, 1, 2, 2});
  const double e1 = std::exp(-1), e3 = std::exp(-3);
  const Tensor expected = from_values<double>({2 * 2 + 5 - e3, 3 + e3, 2 * e1 + 15 - 1.5, e1 + 4.5}, {1, 1, 2, 2});
  CHECK(difference(state, expected, 1e-14) == "");
  const auto taylor = linear_attention_stretch(k, k, v, {}, kTaylorSum).state;
  CHECK(difference(taylor, from_values<double>({6, 2 + 3, -2 + 10 - 0.5, 2 - 9, -2 + 1.5, 2 + 20 - 0.25}, {1, 1, 6, 1}),
                   1e-14) == "");
}

TEST_CASE("linear attention: a token changes nothing before it, not even by a bit, not even as NaN") {
  for (const LinearAttentionOptions& options : kAll) {
    for (const Case& c : {Case{1, 2, 150, 4, 16, options}, Case{4, 4, 20, 3, 5, options}}) {
      CAPTURE(title(c));
      const Inputs clean = inputs_of(c, DType::f32);
      const Tensor before = linear_attention(clean.q, clean.k, clean.v, options).contiguous();
      for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
        for (const int64_t t : {1, 15, 16, 63, 64, 65, 140}) {
          if (t >= c.T) continue;
          CAPTURE(poison);
          CAPTURE(t);
          const Inputs in = inputs_of(c, DType::f32);
          for (const Tensor& x : {in.q, in.k, in.v}) slice(x, 2, t, c.T).fill(poison);
          const Tensor after = linear_attention(in.q, in.k, in.v, options).contiguous();
          CHECK(same_bits(slice(after, 2, 0, t).contiguous(), slice(before, 2, 0, t).contiguous()));
          CHECK_FALSE(same_bits(after, before));
        }
      }
    }
  }
}

TEST_CASE("linear attention: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{1, 2, 700, 20, 24, kElu}, Case{1, 1, 600, 16, 32, kTaylor}, Case{8, 4, 90, 16, 16, kPlain},
                        Case{40, 2, 130, 8, 16, kSoftmax}}) {
    CAPTURE(title(c));
    const auto run = [&](int threads) {
      set_num_threads(threads);
      const Inputs in = inputs_of(c, DType::f32);
      const Tensors leaves = leaves_of(in);
      const auto [y, state] = linear_attention_stretch(leaves[0], leaves[1], leaves[2], {}, c.options);
      y.backward(in.dy);
      return Tensors{y.detach(), state.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
    };
    const Tensors expected = run(1);
    for (const int threads : {2, 3}) {
      const Tensors got = run(threads);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("linear attention: large inputs do not overflow its features") {
  const Tensor q = full({1, 1, 3, 2}, -300, DType::f32), v = from_values<float>({1, 2, 3}, {1, 1, 3, 1});
  const Tensor k = from_values<float>({300, -300, -300, 300, 300, 300}, {1, 1, 3, 2});
  for (const LinearAttentionOptions& options : {kElu, kSoftmax}) {
    const auto y = linear_attention(q, k, v, options).to_vector<float>();
    for (const float value : y) CHECK(std::isfinite(value));
  }
}

TEST_CASE("linear attention: heads of the result lie side by side, gradients of equal width in one buffer") {
  const Case c{2, 3, 5, 4, 4, kElu};
  const Inputs in = inputs_of(c, DType::f32);
  const Tensors leaves = leaves_of(in);
  Tensors seen(3);
  const Tensor y = linear_attention(leaves[0], leaves[1], leaves[2], kElu);
  CHECK(y.strides() == Shape{60, 4, 12, 1});
  for (size_t i = 0; i < 3; ++i) {
    Tensor leaf = leaves[i];
    leaf.register_hook([&seen, i](const Tensor& gradient) {
      seen[i] = gradient;
      return Tensor();
    });
  }
  y.backward(in.dy);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(seen[i].strides() == Shape{180, 4, 36, 1});
    CHECK(seen[i].offset() == static_cast<int64_t>(i) * 12);
  }
}

TEST_CASE("linear attention says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor q = t({2, 3, 4, 5}), v = t({2, 3, 4, 6});
  const auto refused = [&](const std::string& arg, const auto& call) {
    CAPTURE(arg);
    CHECK(op_error(call).find("linear_attention: " + arg + " must be") == 0);
  };
  refused("q", [&] { linear_attention({}, q, v, {}); });
  refused("q", [&] { linear_attention(t({2, 3, 4, 5}, DType::i32), q, v, {}); });
  refused("q", [&] { linear_attention(t({3, 4, 5}), q, v, {}); });
  refused("q", [&] { linear_attention(t({2, 3, 4, 0}), t({2, 3, 4, 0}), v, kTaylor); });
  refused("k", [&] { linear_attention(q, t({2, 3, 4, 6}), v, {}); });
  refused("k", [&] { linear_attention(q, t({2, 3, 4, 5}, DType::f64), v, {}); });
  refused("v", [&] { linear_attention(q, q, t({2, 3, 5, 6}), {}); });
  refused("v", [&] { linear_attention(q, q, t({2, 3, 4}), {}); });
  refused("eps", [&] { linear_attention(q, q, v, {.eps = -1}); });
  refused("initial", [&] { linear_attention_stretch(q, q, v, t({2, 3, 5, 7}), {}); });
  refused("initial", [&] { linear_attention_stretch(q, q, v, t({2, 3, 5, 6}), kElu); });
  refused("initial", [&] { linear_attention_stretch(q, q, v, t({2, 3, 5, 6}), kTaylorSum); });
  refused("initial", [&] { linear_attention_stretch(q, q, v, t({2, 3, 5, 6}, DType::f64), {}); });
}

}  // namespace margay::test
