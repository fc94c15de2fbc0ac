#include "models/attention_core.h"

#include <algorithm>
#include <cmath>

#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/linear.h"
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

QkvProjection::QkvProjection(const Scope& scope, int64_t d_model, bool bias)
    : q(scope / "q_proj", d_model, d_model, bias, projection_init()),
      k(scope / "k_proj", d_model, d_model, bias, projection_init()),
      v(scope / "v_proj", d_model, d_model, bias, projection_init()) {}

Tensor QkvProjection::packed(const Tensor& x) const {
  const Tensor bias = q.bias.defined() ? concat({q.bias, k.bias, v.bias}, 0) : Tensor();
  return linear(x, concat({q.weight, k.weight, v.weight}, 0), bias);
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
  return merge_heads(causal_attention(q, k, v, scores_.beta(), options));
}

}  // namespace margay
