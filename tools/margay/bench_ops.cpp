#include <fmt/format.h>

#include <cmath>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/rng.h"
#include "ops/adamw.h"
#include "ops/causal_attention.h"
#include "ops/conv1d_causal.h"
#include "ops/embedding.h"
#include "ops/fft_conv.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/linear_attention.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul.h"
#include "ops/precision.h"
#include "ops/softmax.h"
#include "ops/vandermonde.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {
namespace {

constexpr int64_t kBatch = 64, kLength = 256, kWidth = 64, kVocabulary = 8192, kTokens = kBatch * kLength, kLong = 512;
constexpr int64_t kWide = 256;

/// Standard normal values that want a gradient.
Tensor normal(const Shape& shape, Device device) {
  RandomStream random(1, static_cast<uint64_t>(shape.numel()));
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (float& value : values) value = static_cast<float>(random.normal());
  return from_values(values, shape, device).set_requires_grad();
}

Tensor ids(int64_t count, Device device) {
  RandomStream random(2, 0);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values) value = static_cast<int32_t>(random.below(kVocabulary));
  return from_values(values, {count}, device);
}

/// One op: how to make its inputs, and how to call it.
struct OpCase {
  std::string name;
  int64_t tokens;
  double flops;  // of the forward pass
  std::function<Tensors(Device)> inputs;
  std::function<Tensor(const Tensors&)> call;
  bool rounds = false;  // consists of products that bf16 makes faster
};

OpCase in_bf16(OpCase op) {
  op.name += "-bf16";
  op.call = [call = op.call](const Tensors& in) {
    const PrecisionScope precision(Precision::bf16);
    return call(in);
  };
  return op;
}

std::function<void()> forward_only(const OpCase& op, Device device) {
  return [call = op.call, inputs = op.inputs(device), device] {
    const NoGrad no_grad;
    call(inputs);
    backend(device).synchronize();
  };
}

std::function<void()> forward_and_backward(const OpCase& op, Device device) {
  const Tensors inputs = op.inputs(device);
  Tensor y;
  {
    const NoGrad no_grad;
    y = op.call(inputs);
  }
  return [call = op.call, inputs, seed = full(y.shape(), 1, DType::f32, device), device] {
    call(inputs).backward(seed);
    for (Tensor input : inputs) input.zero_grad();
    backend(device).synchronize();
  };
}

std::vector<OpCase> op_cases() {
  constexpr double tokens = kTokens, d = kWidth, wide = kWide, vocabulary = kVocabulary;
  constexpr int64_t labels = kBatch * 16, cube = 1024;
  return {
      {"matmul-1024", 0, 2.0 * cube * cube * cube,
       [](Device on) {
         return Tensors{normal({cube, cube}, on), normal({cube, cube}, on)};
       },
       [](const Tensors& in) { return matmul(in[0], in[1]); }, true},
      {"linear-64x192", kTokens, 2 * tokens * d * 3 * d,
       [](Device on) {
         return Tensors{normal({kTokens, kWidth}, on), normal({3 * kWidth, kWidth}, on), normal({3 * kWidth}, on)};
       },
       [](const Tensors& in) { return linear(in[0], in[1], in[2]); }, true},
      {"linear-256x1024", kTokens, 2 * tokens * wide * 4 * wide,
       [](Device on) {
         return Tensors{normal({kTokens, kWide}, on), normal({4 * kWide, kWide}, on), normal({4 * kWide}, on)};
       },
       [](const Tensors& in) { return linear(in[0], in[1], in[2]); }, true},
      {"layer_norm", kTokens, 0,
       [](Device on) {
         return Tensors{normal({kTokens, kWidth}, on), normal({kWidth}, on), normal({kWidth}, on)};
       },
       [](const Tensors& in) { return layer_norm(in[0], in[1], in[2]); }},
      {"softmax-256", 0, 0,
       [](Device on) {
         return Tensors{normal({kTokens, 256}, on)};
       },
       [](const Tensors& in) { return softmax(in[0]); }},
      {"conv1d_causal-W4", kTokens, 2 * tokens * 3 * d * 4,
       [](Device on) {
         return Tensors{normal({kBatch, kLength, 3 * kWidth}, on), normal({3 * kWidth, 4}, on)};
       },
       [](const Tensors& in) { return conv1d_causal(in[0], in[1]); }},
      {"fft_conv-L512", kBatch * kLong, 0,
       [](Device on) {
         return Tensors{normal({kBatch, kLong, kWidth}, on), normal({kWidth, kLong}, on), normal({kWidth}, on)};
       },
       [](const Tensors& in) { return fft_conv(in[0], in[1], in[2]); }},
      {"vandermonde-L512", 0, 0,
       [](Device on) {
         return Tensors{normal({kWidth}, on), normal({kWidth, 32, 2}, on), normal({kWidth, 32}, on),
                        normal({kWidth, 32}, on)};
       },
       [](const Tensors& in) {
         return vandermonde({in[0], in[1], in[2], in[3]}, kLong);
       }},
      {"causal_attention-L256", kTokens, 4 * tokens * (kLength + 1) / 2 * d,
       [](Device on) {
         const Shape shape{kBatch, 1, kLength, kWidth};
         return Tensors{normal(shape, on), normal(shape, on), normal(shape, on)};
       },
       [](const Tensors& in) {
         return causal_attention(in[0], in[1], in[2], {}, {.scale = 1 / std::sqrt(static_cast<double>(kWidth))});
       }},
      {"linear_attention-L256", kTokens, 4 * tokens * d * d,
       [](Device on) {
         const Shape shape{kBatch, 1, kLength, kWidth};
         return Tensors{normal(shape, on), normal(shape, on), normal(shape, on)};
       },
       [](const Tensors& in) {
         return linear_attention(in[0], in[1], in[2], {FeatureMap::elu1, true, 1e-6});
       }},
      {"embedding", kTokens, 0,
       [](Device on) {
         return Tensors{normal({kVocabulary, kWidth}, on), ids(kTokens, on)};
       },
       [](const Tensors& in) { return embedding(in[0], in[1]); }},
      {"linear_cross_entropy", 0, 2.0 * labels * d * vocabulary,
       [](Device on) {
         return Tensors{normal({labels, kWidth}, on), normal({kVocabulary, kWidth}, on), ids(labels, on)};
       },
       [](const Tensors& in) { return linear_cross_entropy(in[0], in[1], in[2]).loss; }, true},
  };
}

/// The optimiser's pass over as many parameters as the small models have.
BenchRow adamw_row() {
  const auto prepare = [](Device device) -> std::function<void()> {
    const Shape shape{kVocabulary, kWidth};
    const Tensors value{normal(shape, device)}, grad{normal(shape, device).detach()},
        m{zeros(shape, DType::f32, device)}, v{zeros(shape, DType::f32, device)};
    const Tensor hyper = from_values({1e-3, 0.1, 0.001, 1.0}, {4}, device);
    return [=] {
      const NoGrad no_grad;
      const std::vector<AdamWRule> rules{{.weight_decay = 0.1}};
      adamw_step(value, grad, m, v, rules, hyper);
      backend(device).synchronize();
    };
  };
  return {.name = "op/adamw_step", .tokens = 0, .flops = 0, .prepare = prepare};
}

}  // namespace

std::vector<BenchRow> op_rows() {
  std::vector<BenchRow> rows;
  std::vector<OpCase> ops;
  for (const OpCase& op : op_cases()) {
    ops.push_back(op);
    if (op.rounds && cpu_has_bf16_products()) ops.push_back(in_bf16(op));
  }
  for (const OpCase& op : ops) {
    rows.push_back(
        {"op/" + op.name + "/forward", op.tokens, op.flops, [op](Device device) { return forward_only(op, device); }});
    rows.push_back({"op/" + op.name + "/forward+backward", op.tokens, 3 * op.flops,
                    [op](Device device) { return forward_and_backward(op, device); }});
  }
  rows.push_back(adamw_row());
  return rows;
}

}  // namespace margay::cli
