#include "models/attention_core.h"

#include <algorithm>
#include <cmath>

#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/linear.h"
#include "ops/selected_attention.h"
#include "ops/view.h"

namespace margay {

Tensor split_heads(const Tensor& x, int64_t heads) {
  return transpose(reshape(x, {x.dim(0), x.dim(1), heads, x.dim(2) / heads}), 1, 2);
}

Tensor merge_heads(const Tensor& x) { return reshape(transpose(x, 1, 2), {x.dim(0), x.dim(2), x.dim(1) * x.dim(3)}); }

Initializer projection_init() { return init::normal(0.02); }

Initializer residual_projection_init(const ModelConfig& config) {
  return init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(config.n_layers)));
}

QkvProjection::QkvProjection(const ModelConfig& config, const Scope& scope)
    : by_head_(config.backbone == "gpt_neox"), heads_(config.n_heads) {
  const int64_t width = config.d_model;
  if (by_head_) {
    parts_.emplace_back(scope / "query_key_value", width, 3 * width, true, init::small(width));
  } else {
    for (const char* name : {"q_proj", "k_proj", "v_proj"})
      parts_.emplace_back(scope / name, width, width, true, projection_init());
  }
}

Tensor QkvProjection::packed(const Tensor& x) const {
  if (by_head_) return parts_[0](x);
  return linear(x, concat({parts_[0].weight, parts_[1].weight, parts_[2].weight}, 0),
                concat({parts_[0].bias, parts_[1].bias, parts_[2].bias}, 0));
}

Qkv QkvProjection::heads(const Tensor& packed) const {
  if (!by_head_) {
    const Tensors qkv = chunk(packed, -1, 3);
    return {split_heads(qkv[0], heads_), split_heads(qkv[1], heads_), split_heads(qkv[2], heads_)};
  }
  const Tensors qkv = chunk(reshape(packed, {packed.dim(0), packed.dim(1), heads_, packed.dim(2) / heads_}), -1, 3);
  return {transpose(qkv[0], 1, 2), transpose(qkv[1], 1, 2), transpose(qkv[2], 1, 2)};
}

Tensor QkvProjection::pack(const Tensors& rows) const {
  if (!by_head_) return concat(rows, 0);
  Tensors by_head;  // [H, elements of a head] each
  Shape shape = rows[0].shape();
  shape[0] = std::max(shape[0], heads_);
  for (const Tensor& t : rows) by_head.push_back(reshape(t.dim(0) == 1 ? expand(t, shape) : t, {heads_, -1}));
  return reshape(concat(by_head, 1), shape.with(0, 3 * shape[0]));
}

Linear QkvProjection::letter(size_t letter) const {
  if (!by_head_) return parts_[letter];
  const auto own = [&](const Tensor& rows) {
    return reshape(chunk(reshape(rows, {heads_, -1}), 1, 3)[letter], rows.shape().with(0, rows.dim(0) / 3));
  };
  return {own(parts_[0].weight), own(parts_[0].bias)};
}

Linear output_projection(const ModelConfig& config, const Scope& scope) {
  const int64_t width = config.d_model;
  if (config.backbone == "gpt_neox") return {scope / "dense", width, width, true, init::wang(width, config.n_layers)};
  return {scope / "out_proj", width, width, true, residual_projection_init(config)};
}

Rope::Rope(const ModelConfig& config) : config_(config), rotary_dims_(0) {
  const auto head_dim = static_cast<double>(config.d_model / config.n_heads);
  if (config.position == "rope") rotary_dims_ = 2 * static_cast<int64_t>(config.rope_fraction * head_dim / 2);
}

Tensor Rope::operator()(const Tensor& x, int64_t position) const {
  if (rotary_dims_ == 0) return x;
  const int64_t length = x.dim(2);
  const bool fits = table_.cos.defined() && table_.cos.dtype() == x.dtype() && table_.cos.device() == x.device();
  if (!fits || position < first_ || position + length > first_ + length_) {
    // Step mode asks for one position after the other: make many at once.
    first_ = position;
    length_ = std::max<int64_t>(length, position > 0 ? 256 : 0);
    table_ = rope_table(first_, length_, rotary_dims_, config_.rope_base, config_.yarn_scale, config_.max_seq_len,
                        x.dtype(), x.device());
  }
  const int64_t begin = position - first_;
  return rope(x, {slice(table_.cos, 0, begin, begin + length), slice(table_.sin, 0, begin, begin + length)});
}

Tensor RowCache::append(const Tensor& rows) {
  const int64_t needed = length_ + rows.dim(2);
  if (!rows_.defined() || rows_.dim(2) < needed) {
    const Tensor old = rows_;
    rows_ = empty(rows.shape().with(2, std::max<int64_t>(2 * needed, 64)), rows.dtype(), rows.device());
    if (length_ > 0) slice(rows_, 2, 0, length_).copy_from(slice(old, 2, 0, length_));
  }
  slice(rows_, 2, length_, needed).copy_from(rows);
  length_ = needed;
  return slice(rows_, 2, 0, length_);
}

SoftmaxScores::SoftmaxScores(const ModelConfig& config, const Scope& scope, const Tensor& beta)
    : beta_(beta),
      scale_(1 / std::sqrt(static_cast<double>(config.d_model / config.n_heads))),
      temperature_(config.yarn_scale == 1 ? 1 : std::pow(0.1 * std::log(config.yarn_scale) + 1, 2)),
      dropout_(config.dropout_attention),
      stream_(scope.stream("attention_dropout")) {}

AttentionOptions SoftmaxScores::options(const ForwardContext& context) const {
  AttentionOptions options{.scale = scale_ * temperature_};
  if (context.rng.defined() && dropout_ > 0) {
    options.dropout = dropout_;
    options.rng = context.rng;
    options.stream = stream_;
  }
  return options;
}

Tensor SoftmaxScores::beta() const { return beta_.defined() && temperature_ != 1 ? mul(beta_, temperature_) : beta_; }

AttentionCore::AttentionCore(const ModelConfig& config, const Scope& scope, int64_t window, const Tensor& beta)
    : rope_(config), scores_(config, scope, beta), window_(window) {}

Tensor AttentionCore::operator()(const Qkv& qkv, const ForwardContext& context, KvCache* cache) const {
  const int64_t position = cache ? cache->length() : 0;
  const Tensor q = rope_(qkv.q, position);
  Tensor k = rope_(qkv.k, position), v = qkv.v;
  if (cache) cache->append(k, v);
  AttentionOptions options = scores_.options(context);
  options.window = window_;
  const int64_t tokens = q.dim(0) * q.dim(2);
  // A selected query costs about as much as two of a whole sequence, which see half of the keys in the mean.
  if (!context.rows.defined() || 2 * context.rows.numel() > tokens)
    return context.read(merge_heads(causal_attention(q, k, v, scores_.beta(), options)));
  const Tensor y = selected_attention(q, k, v, context.rows, scores_.beta(), options);
  return reshape(y, {y.dim(0), y.dim(1) * y.dim(2)});
}

}  // namespace margay
