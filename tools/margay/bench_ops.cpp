#include <cmath>

#include "ops/causal_attention.h"
#include "ops/conv1d_causal.h"
#include "ops/embedding.h"
#include "ops/fft_conv.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/linear_attention.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul.h"
#include "ops/softmax.h"
#include "ops/vandermonde.h"
#include "tools/margay/bench_op_case.h"

namespace margay::cli {
namespace {

constexpr int64_t kBatch = 64, kLength = 256, kWidth = 64, kVocabulary = 8192, kTokens = kBatch * kLength, kLong = 512;
constexpr int64_t kWide = 256;

std::vector<OpCase> op_cases() {
  constexpr double tokens = kTokens, d = kWidth, wide = kWide, vocabulary = kVocabulary;
  constexpr int64_t labels = kBatch * 16, cube = 1024;
  constexpr double pass = sizeof(float) * tokens * d;  // bytes of [B,L,d]
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
      {.name = "layer_norm",
       .tokens = kTokens,
       .inputs =
           [](Device on) {
             return Tensors{normal({kTokens, kWidth}, on), normal({kWidth}, on), normal({kWidth}, on)};
           },
       .call = [](const Tensors& in) { return layer_norm(in[0], in[1], in[2]); },
       .bytes = 2 * pass,
       .backward_bytes = 3 * pass},
      {.name = "softmax-256",
       .inputs =
           [](Device on) {
             return Tensors{normal({kTokens, 256}, on)};
           },
       .call = [](const Tensors& in) { return softmax(in[0]); },
       .bytes = 2 * 4 * pass,
       .backward_bytes = 3 * 4 * pass},
      {.name = "conv1d_causal-W4",
       .tokens = kTokens,
       .inputs =
           [](Device on) {
             return Tensors{normal({kBatch, kLength, 3 * kWidth}, on), normal({3 * kWidth, 4}, on)};
           },
       .call = [](const Tensors& in) { return conv1d_causal(in[0], in[1]); },
       .bytes = 2 * 3 * pass,
       .backward_bytes = 3 * 3 * pass},
      {.name = "fft_conv-L512",
       .tokens = kBatch * kLong,
       .inputs =
           [](Device on) {
             return Tensors{normal({kBatch, kLong, kWidth}, on), normal({kWidth, kLong}, on), normal({kWidth}, on)};
           },
       .call = [](const Tensors& in) { return fft_conv(in[0], in[1], in[2]); },
       .bytes = 2 * 2 * pass,
       .backward_bytes = 3 * 2 * pass},
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
      {.name = "embedding",
       .tokens = kTokens,
       .inputs =
           [](Device on) {
             return Tensors{normal({kVocabulary, kWidth}, on), random_ids(kTokens, kVocabulary, on)};
           },
       .call = [](const Tensors& in) { return embedding(in[0], in[1]); },
       .bytes = 2 * pass,
       .backward_bytes = pass + sizeof(float) * vocabulary * d},
      {"linear_cross_entropy", 0, 2.0 * labels * d * vocabulary,
       [](Device on) {
         return Tensors{normal({labels, kWidth}, on), normal({kVocabulary, kWidth}, on),
                        random_ids(labels, kVocabulary, on)};
       },
       [](const Tensors& in) { return linear_cross_entropy(in[0], in[1], in[2]).loss; }, true},
  };
}

}  // namespace

std::vector<BenchRow> op_rows() {
  std::vector<BenchRow> rows;
  for (const OpCase& op : op_cases()) add_rows("op", op, rows);
  rows.push_back(adamw_row("op/adamw_step", kVocabulary * kWidth));
  return rows;
}

}  // namespace margay::cli
