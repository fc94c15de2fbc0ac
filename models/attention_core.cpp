#include "models/attention_core.h"

#include <algorithm>
#include <cmath>

#include "ops/binary.h"
#include "ops/causal_attention.h"
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

void KvCache::append(Tensor& k, Tensor& v) {
  const int64_t needed = length_ + k.dim(2);
  if (!k_.defined() || k_.dim(2) < needed) {
    const Shape shape{k.dim(0), k.dim(1), std::max<int64_t>(2 * needed, 64), k.dim(3)};
    const Tensor old_k = k_, old_v = v_;
    k_ = empty(shape, k.dtype(), k.device());
    v_ = empty(shape, v.dtype(), v.device());
    if (length_ > 0) {
      slice(k_, 2, 0, length_).copy_from(slice(old_k, 2, 0, length_));
      slice(v_, 2, 0, length_).copy_from(slice(old_v, 2, 0, length_));
    }
  }
  slice(k_, 2, length_, needed).copy_from(k);
  slice(v_, 2, length_, needed).copy_from(v);
  length_ = needed;
  k = slice(k_, 2, 0, length_);
  v = slice(v_, 2, 0, length_);
}

AttentionCore::AttentionCore(const ModelConfig& config, const Scope& scope, int64_t window, const Tensor& beta)
    : rope_(config),
      beta_(beta),
      scale_(1 / std::sqrt(static_cast<double>(config.d_model / config.n_heads))),
      temperature_(1),
      dropout_(config.dropout_attention),
      window_(window),
      stream_(scope.stream("attention_dropout")) {
  if (config.yarn_scale != 1) temperature_ = std::pow(0.1 * std::log(config.yarn_scale) + 1, 2);
}

Tensor AttentionCore::operator()(const Qkv& qkv, const ForwardContext& context, KvCache* cache) const {
  const int64_t position = cache ? cache->length() : 0;
  const Tensor q = rope_(qkv.q, position);
  Tensor k = rope_(qkv.k, position), v = qkv.v;
  if (cache) cache->append(k, v);
  AttentionOptions options{.scale = scale_ * temperature_, .window = window_};
  if (context.rng.defined() && dropout_ > 0) {
    options.dropout = dropout_;
    options.rng = context.rng;
    options.stream = stream_;
  }
  const Tensor beta = beta_.defined() && temperature_ != 1 ? mul(beta_, temperature_) : beta_;
  return merge_heads(causal_attention(q, k, v, beta, options));
}

}  // namespace margay
