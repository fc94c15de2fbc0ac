#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "engine/autograd.h"
#include "engine/device.h"
#include "ops/causal_attention.h"
#include "ops/conv1d_causal.h"
#include "ops/cross_entropy.h"
#include "ops/layer_norm.h"
#include "ops/matmul.h"
#include "ops/selective_scan.h"
#include "tools/margay/bench_op_case.h"

// Shapes that fill a large GPU: what the kernels reach of its memory and of its arithmetic, beside a copy and a
// product.

namespace margay::cli {
namespace {

constexpr int64_t kBatch = 8, kLength = 4096, kWidth = 1024, kElements = kBatch * kLength * kWidth;
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
  const Shape tokens{kBatch, kLength, kWidth};
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
