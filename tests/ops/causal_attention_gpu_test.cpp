// causal_attention on tensor cores: for bf16 tensors, and for f32 tensors whose factors may be rounded, against the CPU
// in f64. Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/device.h"
#include "ops/causal_attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

/// The buffer [B,Lk,3,H,dh] of q, k and v, beta [H] and dy [B,H,Lq,dh]: values of bf16, so that no rounding of factors
/// counts, whatever the dtype.
struct Inputs {
  Tensor packed, beta, dy;
};

Inputs inputs_of(const AttentionCase& c) {
  const auto rounded = [](const Shape& shape, uint64_t seed, double low, double high) {
    return random_uniform(shape, seed, low, high).to(DType::bf16).to(DType::f64);
  };
  return {rounded({c.B, c.Lk, 3, c.H, c.dh}, 1, -1.5, 1.5), rounded({c.H}, 2, -0.6, 1),
          rounded({c.B, c.H, c.Lq, c.dh}, 3, -1, 1)};
}

/// Part 0, 1 or 2 of the buffer: q (its last Lq rows), k or v.
Tensor heads_of(const Tensor& packed, int64_t part, int64_t rows) {
  const int64_t B = packed.dim(0), L = packed.dim(1), H = packed.dim(3), dh = packed.dim(4);
  return packed.view({B, H, rows, dh}, {L * 3 * H * dh, dh, 3 * H * dh, 1}, part * H * dh + (L - rows) * 3 * H * dh);
}

/// The result and the gradients of q, k, v and beta, brought to the CPU in f64.
Tensors run(const AttentionCase& c, const Inputs& in, DType dtype, Device device,
            Precision precision = Precision::bf16) {
  const Tensor packed = in.packed.to(dtype).to(device);
  Tensors leaves{heads_of(packed, 0, c.Lq), heads_of(packed, 1, c.Lk), heads_of(packed, 2, c.Lk)};
  if (c.beta) leaves.push_back(in.beta.to(dtype).to(device));
  for (Tensor& leaf : leaves) leaf = leaf.detach().set_requires_grad();
  AttentionOptions options{.scale = 0.4, .window = c.window, .dropout = c.dropout, .stream = 9};
  if (c.dropout > 0) options.rng = from_values<int64_t>({42, 7}, {2}, device);
  const PrecisionScope scope(precision);
  const Tensor y = causal_attention(leaves[0], leaves[1], leaves[2], c.beta ? leaves[3] : Tensor(), options);
  y.backward(in.dy.to(dtype).to(device));
  Tensors results{y.detach().to(Device{}).to(DType::f64)};
  for (const Tensor& leaf : leaves) results.push_back(leaf.grad().to(Device{}).to(DType::f64));
  return results;
}

/// Weights, and gradients of scores, are rounded to eight bits; sums of many are closer than one of them. Gradients of
/// bf16 tensors also know the result no better, and that of beta sums what mostly cancels.
void check_against_cpu(const AttentionCase& c) {
  CAPTURE(title(c));
  const Inputs in = inputs_of(c);
  const Tensors expected = run(c, in, DType::f64, Device{});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    CAPTURE(name_of(dtype));
    const Tensors got = run(c, in, dtype, kGpu);
    for (size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      const double tolerance = i == 4 ? 0.03 : dtype == DType::bf16 ? 0.04 : 0.01;
      CHECK(difference_relative_to_max(got[i], expected[i], tolerance) == "");
    }
  }
}

Tensor rows_of(const Tensor& x, int64_t first, int64_t count) {
  return x.view(x.shape().with(2, count), x.strides(), first * x.strides()[2]);
}

}  // namespace

TEST_CASE("causal attention on tensor cores is the CPU's, up to rounding" * doctest::skip(no_gpu())) {
  for (const int64_t dh : {16, 32, 64, 96, 128}) check_against_cpu({1, 1, 65, 65, dh});
  for (const int64_t L : {1, 3, 64, 130, 200}) check_against_cpu({1, 1, L, L, 32});
  for (const int64_t Lq : {1, 3, 64, 65}) check_against_cpu({1, 2, Lq, 130, 16});
  check_against_cpu({2, 3, 70, 70, 16, 0, true});
  for (const int64_t window : {1, 63, 64, 65, 100}) check_against_cpu({1, 1, 200, 200, 16, window});
  check_against_cpu({2, 2, 40, 150, 48, 33, true});
}

TEST_CASE("causal attention on tensor cores drops the weights that the mask says" * doctest::skip(no_gpu())) {
  check_against_cpu({2, 2, 5, 5, 16, 0, false, 0.5});
  check_against_cpu({1, 2, 65, 131, 32, 0, true, 0.2});
  check_against_cpu({1, 1, 130, 133, 16, 70, false, 0.9});
}

TEST_CASE("causal attention rounds on a GPU only where it may" * doctest::skip(no_gpu())) {
  const AttentionCase c{1, 2, 70, 70, 32, 0, true};
  const Inputs in = inputs_of(c);
  const Tensors expected = run(c, in, DType::f64, Device{});
  const auto check = [&](const Tensors& got, bool rounds) {
    for (size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK((difference_relative_to_max(got[i], expected[i], 2e-5) == "") != rounds);
    }
  };
  check(run(c, in, DType::f32, kGpu, Precision::f32), false);
  check(run(c, in, DType::f32, kGpu, Precision::bf16), true);
  check(run(c, in, DType::f64, kGpu, Precision::bf16), false);
  check(run(c, in, DType::f32, Device{}, Precision::bf16), false);
  // Heads of other sizes stay as they are.
  const AttentionCase odd{1, 2, 70, 70, 24};
  const Inputs other = inputs_of(odd);
  CHECK(same_bits(run(odd, other, DType::f32, kGpu)[1], run(odd, other, DType::f32, kGpu, Precision::f32)[1]));
}

TEST_CASE("causal attention on tensor cores takes bf16 rows that start anywhere" * doctest::skip(no_gpu())) {
  const Tensor values = random_uniform({3, 2, 70, 16}, 1, -1, 1, DType::bf16, kGpu);
  const auto part = [&](int64_t i) { return values.view({1, 2, 70, 16}, {2240, 1120, 16, 1}, i * 2240); };
  const auto moved = [&](int64_t i) {  // rows 19 elements apart
    const Tensor view = zeros({2, 70, 19}, DType::bf16, kGpu).view({1, 2, 70, 16}, {1330, 1330, 19, 1}, 3);
    view.copy_from(part(i));
    return view.detach();
  };
  CHECK(same_bits(causal_attention(moved(0), moved(1), moved(2), {}, {}),
                  causal_attention(part(0), part(1), part(2), {}, {})));
}

TEST_CASE("causal attention on tensor cores gives the same bits again" * doctest::skip(no_gpu())) {
  const AttentionCase c{1, 2, 130, 140, 32, 70, true, 0.2};
  const Inputs in = inputs_of(c);
  const Tensors first = run(c, in, DType::f32, kGpu), second = run(c, in, DType::f32, kGpu);
  for (size_t i = 0; i < first.size(); ++i) CHECK(same_bits(first[i], second[i]));
}

TEST_CASE("causal attention on tensor cores: the future changes no bit, not even as NaN" * doctest::skip(no_gpu())) {
  for (const AttentionCase& c : {AttentionCase{1, 2, 130, 130, 16}, AttentionCase{1, 1, 100, 150, 32, 70}}) {
    CAPTURE(title(c));
    const auto result = [&](const Inputs& in) {
      const Tensor packed = in.packed.to(DType::f32).to(kGpu);
      const PrecisionScope scope(Precision::bf16);
      return causal_attention(heads_of(packed, 0, c.Lq), heads_of(packed, 1, c.Lk), heads_of(packed, 2, c.Lk), {},
                              {.scale = 0.4, .window = c.window})
          .to(Device{})
          .contiguous();
    };
    const Tensor before = result(inputs_of(c));
    for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      for (const int64_t i : {1, 15, 63, 64, 89}) {
        CAPTURE(poison);
        CAPTURE(i);
        const Inputs in = inputs_of(c);
        const int64_t position = c.Lk - c.Lq + i;
        rows_of(heads_of(in.packed, 0, c.Lq), i, c.Lq - i).fill(poison);
        for (const int64_t part : {1, 2})
          rows_of(heads_of(in.packed, part, c.Lk), position, c.Lk - position).fill(poison);
        const Tensor after = result(in);
        CHECK(same_bits(rows_of(after, 0, i), rows_of(before, 0, i)));
        CHECK_FALSE(same_bits(after, before));
      }
    }
  }
}

TEST_CASE("causal attention on tensor cores: who sees a value that is not finite gets it" * doctest::skip(no_gpu())) {
  const AttentionCase c{1, 1, 70, 70, 16, 30};
  const Inputs in = inputs_of(c);
  heads_of(in.packed, 2, c.Lk).view({1}, {1}, 3 * 48 + 5).fill(HUGE_VAL);  // token 3, element 5
  const auto y = run(c, in, DType::f32, kGpu)[0].to_vector<double>();
  for (int64_t i = 0; i < c.Lq; ++i) {
    for (int64_t d = 0; d < c.dh; ++d) {
      const double value = y[static_cast<size_t>(i * c.dh + d)];
      CHECK((i >= 3 && i <= 33 && d == 5 ? value == HUGE_VAL : std::isfinite(value)));
    }
  }
}

TEST_CASE("causal attention on tensor cores: gradients of the future stay there, even NaN" * doctest::skip(no_gpu())) {
  const AttentionCase c{1, 1, 150, 150, 16, 40};
  const auto gradients = [&](double poison) {
    const Inputs in = inputs_of(c);
    rows_of(in.dy, 20, 10).fill(poison);
    return run(c, in, DType::f32, kGpu);
  };
  // Only queries 20 ... 29 get NaN: they themselves, and the keys 0 ... 29, may.
  const Tensors clean = gradients(0), poisoned = gradients(std::numeric_limits<double>::quiet_NaN());
  for (size_t i = 1; i < 4; ++i)
    CHECK(same_bits(rows_of(poisoned[i], 30, 120).contiguous(), rows_of(clean[i], 30, 120).contiguous()));
  CHECK(same_bits(rows_of(poisoned[1], 0, 20).contiguous(), rows_of(clean[1], 0, 20).contiguous()));
  for (size_t i = 1; i < 4; ++i) CHECK(std::isnan(poisoned[i].to_vector<double>()[29 * 16]));
}

TEST_CASE("causal attention on tensor cores: factors that are not finite reach who sees them" *
          doctest::skip(no_gpu())) {
  const AttentionCase c{1, 1, 100, 100, 16, 30};
  const Tensors clean = run(c, inputs_of(c), DType::f32, kGpu);
  for (const int64_t part : {0, 1, 2}) {
    CAPTURE(part);
    const Inputs in = inputs_of(c);
    rows_of(heads_of(in.packed, part, c.Lk), 50, 1).fill(std::numeric_limits<double>::quiet_NaN());
    const Tensors got = run(c, in, DType::f32, kGpu);
    // Token 50 is a query for the keys 20 ... 50, and a key for the queries 50 ... 80, which see the keys 20 ... 80.
    const int64_t last = part == 0 ? 50 : 80;
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      const int64_t first = i < 2 ? 50 : 20;
      const auto same = [&](int64_t from, int64_t to) {
        return same_bits(rows_of(got[i], from, to - from).contiguous(),
                         rows_of(clean[i], from, to - from).contiguous());
      };
      CHECK(same(0, first));
      CHECK(same(last + 1, c.Lq));
      if (part == 2 && i == 3) {  // dv does not depend on v
        CHECK(same(0, c.Lq));
        continue;
      }
      const auto values = got[i].to_vector<double>();
      CHECK(std::isnan(values[static_cast<size_t>(first * c.dh)]));
      CHECK(std::isnan(values[static_cast<size_t>(last * c.dh)]));
    }
  }
}

}  // namespace margay::test
