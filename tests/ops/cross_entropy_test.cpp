// Both cross-entropies against plain loops in double.

#include "ops/cross_entropy.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "engine/error.h"
#include "engine/rng.h"
#include "ops/label_rows.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul.h"
#include "ops/view.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

struct Expected {
  double loss = 0;
  std::vector<double> nll, dlogits;
  std::vector<int32_t> argmax;
};

// weights: of nll in the sum whose gradient is wanted, beside dloss times the loss.
Expected naive(const Tensor& logits, const Tensor& targets, double dloss, const std::vector<double>& weights) {
  const auto x = logits.to(DType::f64).to_vector<double>();
  const auto t = targets.to_vector<int32_t>();
  const size_t R = t.size(), V = R ? x.size() / R : 0;
  Expected e{0, std::vector<double>(R), std::vector<double>(R * V), std::vector<int32_t>(R, -1)};
  double labelled = 0;
  for (const int32_t target : t) labelled += target == kIgnoredTarget ? 0 : 1;
  for (size_t r = 0; r < R; ++r) {
    if (t[r] == kIgnoredTarget) continue;
    const double* const row = x.data() + r * V;
    size_t best = 0;
    for (size_t v = 1; v < V; ++v) best = row[v] > row[best] ? v : best;
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(row[v] - row[best]);
    const auto target = static_cast<size_t>(t[r]);
    e.argmax[r] = static_cast<int32_t>(best);
    e.nll[r] = row[best] + std::log(sum) - row[target];
    e.loss += e.nll[r] / labelled;
    const double weight = dloss / labelled + weights[r];
    for (size_t v = 0; v < V; ++v)
      e.dlogits[r * V + v] = weight * (std::exp(row[v] - row[best]) / sum - (v == target ? 1 : 0));
  }
  return e;
}

// Random targets, of which every `ignored_every`th is ignored.
Tensor make_targets(int64_t R, int64_t V, int64_t ignored_every) {
  RandomStream random(5, hash_name("targets"));
  std::vector<int32_t> targets;
  for (int64_t r = 0; r < R; ++r) {
    const auto target = static_cast<int32_t>(random.below(static_cast<uint32_t>(V)));
    targets.push_back(ignored_every > 0 && r % ignored_every == 0 ? kIgnoredTarget : target);
  }
  return from_values(targets, {R});
}

void check_outputs(const CrossEntropy& got, const Expected& e, double tolerance) {
  const auto R = static_cast<int64_t>(e.nll.size());
  CHECK(got.loss.item() == doctest::Approx(e.loss).epsilon(tolerance));
  CHECK(difference(got.nll, from_values(e.nll, {R}), tolerance) == "");
  CHECK(got.argmax.to_vector<int32_t>() == e.argmax);
}

void check_linear(int64_t R, int64_t d, int64_t V, int64_t ignored_every, DType dtype, double tolerance) {
  CAPTURE(R);
  CAPTURE(V);
  CAPTURE(ignored_every);
  Tensor h = random_uniform({R, d}, 1, -2, 2, dtype), weight = random_uniform({V, d}, 2, -2, 2, dtype);
  const Tensor targets = make_targets(R, V, ignored_every);
  h.set_requires_grad();
  weight.set_requires_grad();
  const Tensor wide_h = h.detach().to(DType::f64), wide_weight = weight.detach().to(DType::f64);
  const Tensor logits = matmul(wide_h, wide_weight.view({d, V}, {1, d}));
  const Tensor row_weights = random_uniform({R}, 3, -1, 1, dtype);
  const auto dnll = row_weights.to(DType::f64).to_vector<double>();
  const Expected e = naive(logits, targets, 0.7, dnll);
  const LinearCrossEntropy got = linear_cross_entropy(h, weight, targets);
  check_outputs(got, e, tolerance);
  got.loss.backward(full({}, 0.7, dtype), true);
  got.nll.backward(row_weights);
  const Tensor dlogits = from_values(e.dlogits, {R, V});
  CHECK(difference_relative_to_max(h.grad(), matmul(dlogits, wide_weight), tolerance) == "");
  CHECK(difference_relative_to_max(weight.grad(), matmul(dlogits.view({V, R}, {1, V}), wide_h), tolerance) == "");
}

std::string message_of(const std::function<void()>& call, const char* op) {
  try {
    call();
  } catch (const OpError& error) {
    CHECK(error.op() == op);
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("cross_entropy equals plain loops") {
  for (const int64_t V : {1, 7, 33, 300}) {
    for (const int64_t ignored_every : {0, 3, 1}) {
      CAPTURE(V);
      CAPTURE(ignored_every);
      Tensor logits = random_uniform({70, V}, 1, -20, 20, DType::f32);
      logits.set_requires_grad();
      const Tensor targets = make_targets(70, V, ignored_every);
      const Tensor row_weights = random_uniform({70}, 3, -1, 1, DType::f32);
      const Expected e = naive(logits.detach(), targets, 2, row_weights.to(DType::f64).to_vector<double>());
      const CrossEntropy got = cross_entropy(logits, targets);
      check_outputs(got, e, 1e-5);
      got.loss.backward(full({}, 2), true);
      got.nll.backward(row_weights);
      CHECK(difference(logits.grad(), from_values(e.dlogits, {70, V}), 1e-5) == "");
    }
  }
}

TEST_CASE("linear_cross_entropy equals plain loops") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const double tolerance = dtype == DType::f32 ? 5e-5 : 1e-11;
    check_linear(5, 3, 7, 0, dtype, tolerance);
    check_linear(40, 16, 1000, 3, dtype, tolerance);  // groups of words
    check_linear(700, 8, 50, 0, dtype, tolerance);    // groups of rows
    check_linear(700, 8, 50, 2, dtype, tolerance);
    check_linear(300, 8, 513, 7, dtype, tolerance);  // several blocks each way
    check_linear(6, 4, 40, 1, dtype, tolerance);     // no label at all
  }
}

TEST_CASE("linear_cross_entropy: rows in several rounds") {
  // So wide that the parts of dh are kept for some of the rows at a time.
  const kernels::LossPieces pieces(300, 2100, 550);
  REQUIRE(pieces.rows_per_round < 300);
  REQUIRE(pieces.word_groups > 1);
  check_linear(350, 550, 2100, 7, DType::f32, 2e-4);
}

TEST_CASE("linear_cross_entropy: a loss too large to keep its exponentials equals its halves, which keep them") {
  using Kept = kernels::KeptExponentials<float>;
  constexpr int64_t R = 5400, half = R / 2, V = 8192, d = 2, ignored_every = 5, labelled = R - R / ignored_every;
  REQUIRE(Kept::size(DeviceType::cpu, labelled, V, d) == 0);
  REQUIRE(Kept::size(DeviceType::cpu, half, V, d) > 0);
  const Tensor h = random_uniform({R, d}, 1, -2, 2, DType::f32), weight = random_uniform({V, d}, 2, -2, 2, DType::f32);
  const Tensor targets = make_targets(R, V, ignored_every), row_weights = random_uniform({R}, 3, -1, 1, DType::f32);
  // Gradients with respect to rows begin ... end - 1 of h, nll of them, and the weight's gradient.
  const auto part = [&](int64_t begin, int64_t end, Tensor& leaf) {
    const auto rows = [&](const Tensor& x) { return slice(x, 0, begin, end); };
    Tensor own = rows(h).contiguous().detach().set_requires_grad();
    const LinearCrossEntropy got = linear_cross_entropy(own, leaf, rows(targets));
    got.nll.backward(rows(row_weights));
    return Tensors{own.grad(), got.nll.detach()};
  };
  Tensor whole = weight.detach().set_requires_grad(), halves = weight.detach().set_requires_grad();
  const Tensors all = part(0, R, whole), first = part(0, half, halves), second = part(half, R, halves);
  for (size_t i = 0; i < all.size(); ++i) {
    CHECK(difference_relative_to_max(slice(all[i], 0, 0, half), first[i], 2e-6) == "");
    CHECK(difference_relative_to_max(slice(all[i], 0, half, R), second[i], 2e-6) == "");
  }
  CHECK(difference_relative_to_max(whole.grad(), halves.grad(), 5e-6) == "");
}

TEST_CASE("cross-entropies of huge logits stay finite, and exact where one class wins") {
  const Tensor logits = from_values({1e4f, -1e4f, 0.0f, 3e38f, -3e38f, 0.0f}, {2, 3});
  const Tensor targets = from_values({0, 0}, {2});
  const CrossEntropy got = cross_entropy(logits, targets);
  CHECK(got.nll.to_vector<float>() == std::vector<float>{0, 0});
  CHECK(got.loss.item() == 0);
  const Tensor weight = from_values({1.0f, -1.0f, 0.0f}, {3, 1}), h = from_values({1e4f, 1e30f}, {2, 1});
  const LinearCrossEntropy fused = linear_cross_entropy(h, weight, targets);
  CHECK(fused.nll.to_vector<float>() == std::vector<float>{0, 0});
  const LinearCrossEntropy wrong = linear_cross_entropy(h, weight, from_values({1, 2}, {2}));
  CHECK(wrong.nll.to_vector<float>() == std::vector<float>{2e4f, 1e30f});
}

TEST_CASE("cross-entropies: equal logits, the lowest class is taken") {
  const Tensor targets = from_values({3, 0}, {2});
  CHECK(cross_entropy(zeros({2, 40}), targets).argmax.to_vector<int32_t>() == std::vector<int32_t>{0, 0});
  // 700 words lie in several groups and blocks; words 130, 300 and 699 are the likeliest.
  std::vector<float> words(700, 0.0f);
  words[130] = words[300] = words[699] = 1.0f;
  const Tensor weight = from_values(words, {700, 1});
  const LinearCrossEntropy got = linear_cross_entropy(from_values({1.0f, 2.0f}, {2, 1}), weight, targets);
  CHECK(got.argmax.to_vector<int32_t>() == std::vector<int32_t>{130, 130});
}

TEST_CASE("cross-entropies: NaN is not hidden") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor targets = from_values({0, 1}, {2});
  const Tensor logits = from_values({0.0f, nan, 1.0f, 2.0f}, {2, 2});
  const std::vector<float> nll = cross_entropy(logits, targets).nll.to_vector<float>();
  CHECK(std::isnan(nll[0]));
  CHECK(std::isfinite(nll[1]));
  std::vector<float> words(600, 0.5f);
  words[400] = nan;
  const LinearCrossEntropy got = linear_cross_entropy(ones({2, 1}), from_values(words, {600, 1}), targets);
  CHECK(std::isnan(got.loss.item()));
  CHECK(std::isnan(got.nll.to_vector<float>()[1]));
}

TEST_CASE("cross-entropies: no label gives loss 0 and gradients 0") {
  Tensor h = random_uniform({3, 2}, 1), weight = random_uniform({4, 2}, 2);
  h.set_requires_grad();
  weight.set_requires_grad();
  const Tensor targets = full({3}, kIgnoredTarget, DType::i32);
  const LinearCrossEntropy got = linear_cross_entropy(h, weight, targets);
  CHECK(got.loss.item() == 0);
  CHECK(got.argmax.to_vector<int32_t>() == std::vector<int32_t>{-1, -1, -1});
  got.loss.backward();
  CHECK(difference(h.grad(), zeros({3, 2}), 0) == "");
  CHECK(difference(weight.grad(), zeros({4, 2}), 0) == "");
}

TEST_CASE("linear_cross_entropy: its gradient is added to what the weight has gathered before") {
  const int64_t n = 40, d = 6;
  const Tensor h = random_uniform({n, d}, 1), targets = make_targets(n, n, 0), seed = random_uniform({d}, 2);
  Tensor weight = random_uniform({n, d}, 3);
  weight.set_requires_grad();
  // The product comes after the loss, so its gradient of the weight comes before.
  const Tensor nll = linear_cross_entropy(h, weight, targets).nll;
  matmul(nll, weight).backward(seed);
  const Tensor values = weight.detach(),
               by_product = matmul(nll.detach().view({n, 1}, {1, 1}), seed.view({1, d}, {d, 1}));
  Tensor other = values.clone();
  other.set_requires_grad();
  linear_cross_entropy(h, other, targets).nll.backward(matmul(values, seed));
  const Tensor expected = other.grad().clone();
  backend({}).accumulate(expected.region(), by_product.region());
  CHECK(difference(weight.grad(), expected, 1e-12) == "");
}

TEST_CASE("cross-entropies: errors name the argument") {
  const auto plain = [](const Tensor& logits, const Tensor& targets) {
    return message_of([&] { cross_entropy(logits, targets); }, "cross_entropy");
  };
  const auto fused = [](const Tensor& h, const Tensor& weight, const Tensor& targets) {
    return message_of([&] { linear_cross_entropy(h, weight, targets); }, "linear_cross_entropy");
  };
  const Tensor ids = from_values({0, 1}, {2}), h = zeros({2, 3}), weight = zeros({5, 3});
  CHECK(plain(zeros({2, 5}), from_values({0, 5}, {2})) ==
        "cross_entropy: targets must be -100 (ignored) or in [0, 5), got 5 at row 1");
  CHECK(plain(zeros({2, 5}), from_values({-1, 0}, {2})).find("got -1 at row 0") != std::string::npos);
  CHECK(plain(zeros({2, 0}), ids).find("in [0, 0)") != std::string::npos);
  CHECK(plain(zeros({2}), ids) == "cross_entropy: logits must be [R, V], got f32[2]");
  CHECK(plain(zeros({3, 5}), ids).find("targets must be i32 [R]") != std::string::npos);
  CHECK(plain(zeros({2, 5}), zeros({2})).find("targets must be i32 [R]") != std::string::npos);
  CHECK(plain(zeros({2, 5}), {}).find("targets must be i32 [R]") != std::string::npos);
  CHECK(plain({}, ids).find("logits must be") != std::string::npos);
  CHECK(fused(h, weight, from_values({0, 9}, {2})) ==
        "linear_cross_entropy: targets must be -100 (ignored) or in [0, 5), got 9 at row 1");
  CHECK(fused(h, zeros({5, 2}), ids) ==
        "linear_cross_entropy: weight must be [V, d], d = last axis of h f32[2,3], got f32[5,2]");
  CHECK(fused(zeros({2, 3, 1}), weight, ids).find("h must be [R, d]") != std::string::npos);
  CHECK(fused(h, zeros({5, 3}, DType::f64), ids).find("weight must be of the dtype") != std::string::npos);
  CHECK(fused(zeros({3, 3}), weight, ids).find("targets must be i32 [R]") != std::string::npos);
}

}  // namespace margay::test
