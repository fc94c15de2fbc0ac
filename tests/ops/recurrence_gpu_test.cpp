// linear_attention, gated_delta_rule and ssd on a GPU, where they share their kernels, against the CPU in f64: several
// chunks and tiles of tokens, ragged ones, and sizes of states that take other kernels. Skipped, and counted as
// skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/device.h"
#include "ops/gated_delta_rule.h"
#include "ops/linear_attention.h"
#include "ops/ssd.h"
#include "ops/view.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

/// An op on inputs of which the last is the state before the first token, in the dtype of sums if `sums_state`.
struct Case {
  std::string title;
  Tensors inputs;  // f64, values of bf16; the first `sequences` have time on axis `time`
  std::function<Tensors(const Tensors&)> call;
  bool sums_state = true;
  size_t sequences = 3;
  int64_t time = 2;
};

Tensor rounded(const Shape& shape, uint64_t seed, double low = -1, double high = 1) {
  return random_uniform(shape, seed, low, high).to(DType::bf16).to(DType::f64);
}

Case linear_case(const Shape& s, const LinearAttentionOptions& options) {
  const int64_t B = s[0], H = s[1], T = s[2], f = s[3], dv = s[4];
  const kernels::LinearAttentionShape shape{B, H, T, f, dv, options.map, options.normalise};
  // A state that keeps normalisers away from 0.
  return {"linear_attention " + to_string(s) + " " + std::to_string(static_cast<int>(options.map)),
          {rounded({B, H, T, f}, 1), rounded({B, H, T, f}, 2), rounded({B, H, T, dv}, 3),
           rounded({B, H, shape.features(), shape.state_columns()}, 4, 1, 2)},
          [options](const Tensors& in) {
            const auto [y, state] = linear_attention_stretch(in[0], in[1], in[2], in[3], options);
            return Tensors{y, state};
          }};
}

Case delta_case(const Shape& s, kernels::Decay decay, bool beta, double fastest = -0.5) {
  using kernels::Decay;
  const int64_t B = s[0], H = s[1], T = s[2], f = s[3], dv = s[4];
  const double longest = 1 / std::sqrt(static_cast<double>(f));
  Case c{"gated_delta_rule " + to_string(s) + " " + std::to_string(static_cast<int>(decay)) + (beta ? " beta" : ""),
         {rounded({B, H, T, f}, 1), rounded({B, H, T, f}, 2, -longest, longest), rounded({B, H, T, dv}, 3)},
         [decay, beta](const Tensors& in) {
           size_t next = 3;
           const Tensor log_decay = decay == Decay::none ? Tensor() : in[next++], rate = beta ? in[next++] : Tensor();
           const auto [y, state] = gated_delta_rule_stretch(in[0], in[1], in[2], log_decay, rate, in[next]);
           return Tensors{y, state};
         }};
  if (decay == Decay::head) c.inputs.push_back(rounded({B, H, T}, 4, fastest, 0));
  if (decay == Decay::feature) c.inputs.push_back(rounded({B, H, T, f}, 4, fastest, 0));
  if (beta) c.inputs.push_back(rounded({B, H, T}, 5, 0, 1));
  c.sequences = c.inputs.size();
  c.inputs.push_back(rounded({B, H, f, dv}, 6));
  return c;
}

/// Of {batch, length, heads, states, head_dim}.
Case ssd_case(const Shape& s, double fastest = -1) {
  const int64_t B = s[0], L = s[1], H = s[2], N = s[3], P = s[4];
  return {"ssd " + to_string(s),
          {rounded({B, L, H * P}, 1), rounded({B, L, H}, 2, 0, 0.7), rounded({B, L, N}, 3), rounded({B, L, N}, 4),
           rounded({H}, 5, fastest, -0.01), rounded({H}, 6), rounded({B, H, N, P}, 7)},
          [](const Tensors& in) {
            return ssd({.x = in[0], .step = in[1], .A = in[4], .B = in[2], .C = in[3], .D = in[5], .initial = in[6]});
          },
          false,
          4,
          1};
}

std::vector<Case> cases() {
  using kernels::Decay;
  constexpr LinearAttentionOptions plain{}, elu{FeatureMap::elu1, true, 0.5}, softmax{FeatureMap::softmax, true, 0.5},
      taylor{FeatureMap::taylor2, true, 0.5};
  std::vector<Case> all{
      linear_case({1, 2, 200, 5, 7}, plain),
      linear_case({2, 1, 64, 3, 4}, elu),
      linear_case({1, 1, 65, 33, 64}, elu),      // 65 columns
      linear_case({1, 1, 129, 70, 3}, softmax),  // more than 64 rows
      linear_case({1, 2, 130, 12, 20}, taylor),  // 91 rows
      linear_case({1, 1, 70, 260, 3}, plain),    // more than 256 rows, then columns
      linear_case({1, 1, 70, 3, 260}, plain),
      linear_case({1, 1, 80, 140, 140}, plain),  // chunks of 70 tokens
      delta_case({1, 1, 600, 3, 2}, Decay::head, false),
      delta_case({1, 1, 600, 3, 2}, Decay::feature, false),
      delta_case({1, 2, 150, 6, 37}, Decay::feature, false, -30),  // nothing is left of a state after a chunk
      delta_case({1, 1, 20, 260, 3}, Decay::feature, true),
      delta_case({1, 1, 20, 3, 260}, Decay::head, true),
      ssd_case({2, 200, 3, 17, 20}),
      ssd_case({1, 135, 1, 70, 9}),
      ssd_case({1, 100, 2, 4, 70}, -30),
      ssd_case({3, 1, 2, 4, 5}),
  };
  for (const Decay decay : {Decay::none, Decay::head, Decay::feature})
    for (const bool beta : {false, true}) all.push_back(delta_case({2, 1, 135, 35, 33}, decay, beta));
  return all;
}

/// Results and gradients, brought to the CPU in f64.
Tensors run(const Case& c, DType dtype, Device device) {
  Tensors leaves;
  for (const Tensor& input : c.inputs) leaves.push_back(input.to(dtype));
  if (c.sums_state) leaves.back() = c.inputs.back().to(acc_dtype(dtype));
  for (Tensor& leaf : leaves) leaf = leaf.to(device).detach().set_requires_grad();
  const Tensors results = c.call(leaves);
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor cotangent = rounded(results[i].shape(), 50 + i).to(results[i].dtype()).to(device);
    results[i].backward(cotangent, i == 0);
  }
  Tensors all{results[0].detach(), results[1].detach()};
  for (const Tensor& leaf : leaves) all.push_back(leaf.grad());
  for (Tensor& tensor : all) tensor = tensor.contiguous().to(Device{}).to(DType::f64);
  return all;
}

}  // namespace

TEST_CASE("recurrences are cut by their shape, and never into states that outweigh keys and values") {
  const auto check = [](const kernels::RecurrenceChunks& chunks, int64_t tokens, int64_t count) {
    CHECK(chunks.tokens == tokens);
    CHECK(chunks.count == count);
  };
  using kernels::RecurrenceChunks;
  check(RecurrenceChunks::cut(8, 2048, 64, 64), 64, 32);     // 16 blocks of a chunk
  check(RecurrenceChunks::cut(64, 2048, 64, 64), 256, 8);    // 128
  check(RecurrenceChunks::cut(300, 2048, 64, 64), 2048, 1);  // 600: the heads alone
  check(RecurrenceChunks::cut(1, 2048, 300, 300), 150, 14);
  check(RecurrenceChunks::cut(8, 65, 3, 3), 64, 2);
  check(RecurrenceChunks::cut(0, 0, 0, 0), 64, 1);
  for (const int64_t heads : {1, 7, 100})
    for (const int64_t T : {1, 64, 1000, 100000}) {
      const RecurrenceChunks chunks = RecurrenceChunks::cut(heads, T, 64, 48);
      CHECK(chunks.tokens * chunks.count >= T);
      CHECK(chunks.tokens * (chunks.count - 1) < T);
    }
}

TEST_CASE("cuda: recurrences and their gradients are the CPU's" * doctest::skip(no_gpu())) {
  for (const Case& c : cases()) {
    CAPTURE(c.title);
    const Tensors expected = run(c, DType::f64, {});
    for (const DType dtype : {DType::f64, DType::bf16}) {  // sums in both types
      CAPTURE(name_of(dtype));
      const double tolerance = dtype == DType::f64 ? 1e-10 : 2e-2;
      const Tensors got = run(c, dtype, kGpu);
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(difference_relative_to_max(got[i], expected[i], tolerance) == "");
      }
    }
  }
}

TEST_CASE("cuda: without gradients recurrences give the same bits" * doctest::skip(no_gpu())) {
  for (const Case& c : {linear_case({1, 2, 200, 5, 7}, {}), delta_case({1, 2, 150, 6, 7}, kernels::Decay::head, false),
                        ssd_case({2, 200, 3, 7, 5})}) {
    CAPTURE(c.title);
    const Tensors expected = run(c, DType::f64, kGpu);
    Tensors inputs;
    for (const Tensor& input : c.inputs) inputs.push_back(input.to(kGpu));
    const Tensors got = c.call(inputs);
    for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i].contiguous().to(Device{}), expected[i]));
  }
}

TEST_CASE("cuda: a token of a recurrence changes no bit before it" * doctest::skip(no_gpu())) {
  for (const Case& c : {linear_case({1, 2, 150, 5, 7}, {}), delta_case({1, 2, 150, 6, 7}, kernels::Decay::head, false),
                        delta_case({1, 1, 150, 6, 7}, kernels::Decay::feature, true), ssd_case({2, 150, 3, 7, 5})}) {
    CAPTURE(c.title);
    const auto y_of = [&](const Tensors& inputs) {
      Tensors there;
      for (const Tensor& input : inputs) there.push_back(input.to(kGpu));
      return c.call(there)[0].contiguous().to(Device{});
    };
    const Tensor before = y_of(c.inputs);
    for (const int64_t t : {1, 63, 64, 65, 149}) {
      CAPTURE(t);
      Tensors inputs;
      for (const Tensor& input : c.inputs) inputs.push_back(input.clone());
      const double poison = std::numeric_limits<double>::quiet_NaN();
      for (size_t i = 0; i < c.sequences; ++i) slice(inputs[i], c.time, t, 150).fill(poison);
      const Tensor after = y_of(inputs);
      CHECK(same_bits(slice(after, c.time, 0, t).contiguous(), slice(before, c.time, 0, t).contiguous()));
      CHECK_FALSE(same_bits(after, before));
    }
  }
}

}  // namespace margay::test
