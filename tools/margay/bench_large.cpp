#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "engine/autograd.h"
#include "engine/device.h"
#include "ops/causal_attention.h"
#include "ops/conv1d_causal.h"
#include "ops/cross_entropy.h"
#include "ops/fft_conv.h"
#include "ops/gated_delta_rule.h"
#include "ops/glu.h"
#include "ops/layer_norm.h"
#include "ops/linear_attention.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "ops/selective_scan.h"
#include "ops/ssd.h"
#include "ops/wkv.h"
#include "tools/margay/bench_op_case.h"

// Shapes that fill a large GPU: what the kernels reach of its memory and of its arithmetic, beside a copy and a
// product.

namespace margay::cli {
namespace {

constexpr int64_t kBatch = 8, kLength = 4096, kWidth = 1024, kElements = kBatch * kLength * kWidth;
constexpr int64_t kHeads = 16, kHead = kWidth / kHeads;
constexpr double kPass = sizeof(float) * static_cast<double>(kElements);  // bytes of one tensor

BenchRow copy_row() {
  return {.name = "large/copy", .bytes = 2 * kPass, .prepare = [](Device device) -> std::function<void()> {
            const Tensor from = normal({kElements}, device).detach(), to = empty_like(from);
            return [from, to, device] {
              to.copy_from(from);
              backend(device).synchronize();
            };
          }};
}

OpCase attention_case(int64_t dh) {
  constexpr int64_t batch = 4, heads = 16;
  const double visible = static_cast<double>(batch * heads * kLength) * static_cast<double>(kLength + 1) / 2;
  return {.name = fmt::format("causal_attention-L4096-dh{}", dh),
          .tokens = batch * kLength,
          .flops = 4 * visible * static_cast<double>(dh),
          .inputs =
              [dh](Device on) {
                const Shape shape{batch, heads, kLength, dh};
                return Tensors{normal(shape, on), normal(shape, on), normal(shape, on)};
              },
          .call =
              [dh](const Tensors& in) {
                return causal_attention(in[0], in[1], in[2], {}, {.scale = 1 / std::sqrt(static_cast<double>(dh))});
              },
          .in_bf16 = true,
          .backward = 2.5};  // five products, of which the forward pass has two
}

std::vector<OpCase> cases() {
  constexpr int64_t cube = 4096, states = 16, words = 32768, rows = kElements / words;
  const Shape tokens{kBatch, kLength, kWidth}, heads{kBatch, kHeads, kLength, kHead};
  return {
      {.name = "matmul-4096",
       .flops = 2.0 * cube * cube * cube,
       .inputs =
           [](Device on) {
             return Tensors{normal({cube, cube}, on), normal({cube, cube}, on)};
           },
       .call = [](const Tensors& in) { return matmul(in[0], in[1]); },
       .in_bf16 = true},
      {.name = "layer_norm",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             return Tensors{normal(tokens, on), normal({kWidth}, on), normal({kWidth}, on)};
           },
       .call = [](const Tensors& in) { return layer_norm(in[0], in[1], in[2]); },
       .bytes = 2 * kPass,
       .backward_bytes = 3 * kPass},
      {.name = "rms_norm",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             return Tensors{normal(tokens, on), normal({kWidth}, on)};
           },
       .call = [](const Tensors& in) { return rms_norm(in[0], in[1]); },
       .bytes = 2 * kPass,
       .backward_bytes = 3 * kPass},
      {.name = "swiglu",
       .tokens = kBatch * kLength,
       .inputs = [tokens](Device on) { return Tensors{normal(tokens, on)}; },
       .call = [](const Tensors& in) { return swiglu(in[0]); },
       .bytes = 1.5 * kPass,
       .backward_bytes = 2.5 * kPass},
      {.name = "conv1d_causal-W4",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             return Tensors{normal(tokens, on), normal({kWidth, 4}, on)};
           },
       .call = [](const Tensors& in) { return conv1d_causal(in[0], in[1]); },
       .bytes = 2 * kPass,
       .backward_bytes = 3 * kPass},
      {.name = "cross_entropy-32k",
       .tokens = rows,
       .inputs =
           [](Device on) {
             return Tensors{normal({rows, words}, on), random_ids(rows, words, on)};
           },
       .call = [](const Tensors& in) { return cross_entropy(in[0], in[1]).loss; },
       .bytes = kPass,
       .backward_bytes = 2 * kPass},
      {.name = "selective_scan-L4096",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             const Shape per_state{kBatch, kLength, states};
             const Tensor rates = full({kWidth, states}, -1, DType::f32, on);
             return Tensors{normal(tokens, on), normal(tokens, on), rates, normal(per_state, on),
                            normal(per_state, on)};
           },
       .call =
           [](const Tensors& in) {
             return selective_scan(
                 {.u = in[0], .delta = in[1], .A = in[2], .B = in[3], .C = in[4], .delta_softplus = true})[0];
           },
       .bytes = 3 * kPass,
       .backward_bytes = 5 * kPass},
      {.name = "wkv-L4096",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             return Tensors{full({kWidth}, -0.5, DType::f32, on), normal({kWidth}, on), normal(tokens, on),
                            normal(tokens, on)};
           },
       .call = [](const Tensors& in) { return wkv({.w = in[0], .u = in[1], .k = in[2], .v = in[3]})[0]; },
       .bytes = 3 * kPass,
       .backward_bytes = 5 * kPass},
      {.name = "fft_conv-L4096",
       .tokens = kBatch * kLength,
       .inputs =
           [tokens](Device on) {
             return Tensors{normal(tokens, on), normal({kWidth, kLength}, on), normal({kWidth}, on)};
           },
       .call = [](const Tensors& in) { return fft_conv(in[0], in[1], in[2]); },
       .bytes = 2 * kPass,
       .backward_bytes = 3 * kPass},
      // Of the three recurrences on matrices, the operations of the token-by-token form.
      {.name = "linear_attention-L4096",
       .tokens = kBatch * kLength,
       .flops = 4 * static_cast<double>(kElements) * kHead,
       .inputs =
           [heads](Device on) {
             return Tensors{normal(heads, on), normal(heads, on), normal(heads, on)};
           },
       .call =
           [](const Tensors& in) {
             return linear_attention(in[0], in[1], in[2], {FeatureMap::elu1, true, 1e-6});
           },
       .bytes = 4 * kPass,
       .backward_bytes = 7 * kPass},
      {.name = "gated_delta_rule-L4096",
       .tokens = kBatch * kLength,
       .flops = 6 * static_cast<double>(kElements) * kHead,
       .inputs =
           [heads](Device on) {
             const Shape of_heads{kBatch, kHeads, kLength};
             return Tensors{normal(heads, on), full(heads, 0.1, DType::f32, on), normal(heads, on),
                            full(of_heads, -0.1, DType::f32, on), full(of_heads, 0.5, DType::f32, on)};
           },
       .call = [](const Tensors& in) { return gated_delta_rule(in[0], in[1], in[2], in[3], in[4]); },
       .bytes = 4 * kPass,
       .backward_bytes = 7 * kPass},
      {.name = "ssd-L4096",
       .tokens = kBatch * kLength,
       .flops = 4 * static_cast<double>(kElements) * kHead,
       .inputs =
           [tokens](Device on) {
             const Shape per_state{kBatch, kLength, kHead};
             return Tensors{normal(tokens, on),
                            full({kBatch, kLength, kHeads}, 0.1, DType::f32, on),
                            full({kHeads}, -1, DType::f32, on),
                            normal(per_state, on),
                            normal(per_state, on),
                            normal({kHeads}, on)};
           },
       .call =
           [](const Tensors& in) {
             return ssd({.x = in[0], .step = in[1], .A = in[2], .B = in[3], .C = in[4], .D = in[5]})[0];
           },
       .bytes = 2 * kPass,
       .backward_bytes = 3 * kPass},
      attention_case(64),
      attention_case(128),
  };
}

}  // namespace

std::vector<BenchRow> large_rows() {
  std::vector<BenchRow> rows{copy_row()};
  for (const OpCase& op : cases()) add_rows("large", op, rows);
  rows.push_back(adamw_row("large/adamw_step", kElements));
  return rows;
}

}  // namespace margay::cli
