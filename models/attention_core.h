#pragma once
#include <memory>
#include <vector>

#include "models/layers.h"
#include "models/mixer.h"
#include "ops/causal_attention.h"
#include "ops/rope.h"

namespace margay {

/// Queries, keys and values, each [B, T, d] or [B, H, T, dh].
struct Qkv {
  Tensor q, k, v;
};

/// [B, T, d] -> [B, H, T, d / H], a view.
Tensor split_heads(const Tensor& x, int64_t heads);
/// [B, H, T, dh] -> [B, T, H * dh].
Tensor merge_heads(const Tensor& x);

/// The query, key and value projections of attention-like mixers, with biases: three matrices one after the other, or,
/// in gpt_neox, one matrix whose rows are those of q, k and v of head 0, then those of head 1, and so on.
class QkvProjection {
 public:
  QkvProjection(const ModelConfig& config, const Scope& scope);
  /// All three of x [B, T, d] in one product: [B, T, 3d], channels in the order of the rows.
  Tensor packed(const Tensor& x) const;
  /// What has the channels of packed(), cut into heads.
  Qkv heads(const Tensor& packed) const;
  /// Things that belong to the channels of q, k and v, in the order of packed(): each [d, ..], [H, ..] or [1, ..],
  /// which stands for every head -> three times as many rows.
  Tensor pack(const Tensors& rows) const;
  /// The projection to queries, keys or values alone: letter 0, 1 or 2.
  Linear letter(size_t letter) const;

 private:
  bool by_head_;
  int64_t heads_;
  std::vector<Linear> parts_;  // q, k, v, or the one matrix of all
};

/// The projection of attention's result, back into the residual stream.
Linear output_projection(const ModelConfig& config, const Scope& scope);

/// Rotary position embedding of a model; its tables are kept.
class Rope {
 public:
  /// Off unless config.position is "rope".
  explicit Rope(const ModelConfig& config);
  /// x [B, H, T, dh], whose first token stands at `position`.
  Tensor operator()(const Tensor& x, int64_t position) const;

 private:
  ModelConfig config_;
  int64_t rotary_dims_;
  mutable RopeTable table_;  // of the positions first_ ... first_ + length_ - 1
  mutable int64_t first_ = 0, length_ = 0;
};

/// Rows [B, H, T, dh] of the tokens seen so far, in memory that doubles when it is full.
class RowCache {
 public:
  /// Appends rows; returns a view of all of them.
  Tensor append(const Tensor& rows);
  int64_t length() const { return length_; }

 private:
  Tensor rows_;
  int64_t length_ = 0;
};

/// Keys and values of the tokens seen so far.
class KvCache {
 public:
  /// Appends k and v [B, H, T, dh]; afterwards they are views of everything seen.
  void append(Tensor& k, Tensor& v) { k = k_.append(k), v = v_.append(v); }
  int64_t length() const { return k_.length(); }

 private:
  RowCache k_, v_;
};

/// How a model scales the scores of softmax attention, and drops its weights in training.
class SoftmaxScores {
 public:
  /// `beta` [H] replaces the score scale 1/sqrt(dh), undefined for none.
  SoftmaxScores(const ModelConfig& config, const Scope& scope, const Tensor& beta);
  /// Scale and dropout of one forward pass.
  AttentionOptions options(const ForwardContext& context) const;
  /// The scores' factor of each head [H], or undefined.
  Tensor beta() const;

 private:
  Tensor beta_;
  double scale_, temperature_, dropout_;  // temperature: YaRN's, on the whole score scale
  uint64_t stream_;
};

/// Multi-head causal softmax attention between projections: position, scores, cache.
class AttentionCore {
 public:
  /// `window` as AttentionOptions; `beta` [H] replaces the score scale 1/sqrt(dh), undefined for none.
  AttentionCore(const ModelConfig& config, const Scope& scope, int64_t window, const Tensor& beta);
  /// q, k, v [B, H, T, dh], not yet rotated -> context.read() of [B, T, d].
  Tensor operator()(const Qkv& qkv, const ForwardContext& context, KvCache* cache) const;

 private:
  Rope rope_;
  SoftmaxScores scores_;
  int64_t window_;
};

/// N(0, 0.02^2), and that divided by sqrt(2 n_layers) for projections back into the residual stream, so that its
/// variance does not grow with depth (GPT-2's rule). The weights of gpt_neox have initial values of their own.
Initializer projection_init();
Initializer residual_projection_init(const ModelConfig& config);

}  // namespace margay
