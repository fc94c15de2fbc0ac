#include "models/linear_attention_core.h"

#include "ops/binary.h"
#include "ops/view.h"

namespace margay {
namespace {

constexpr double kEps = 1e-6;  // of the normaliser

LinearAttentionOptions options_of(const std::string& feature_map) {
  if (feature_map == "elu1") return {FeatureMap::elu1, true, kEps};
  if (feature_map == "softmax") return {FeatureMap::softmax, true, kEps};
  if (feature_map == "taylor2") return {FeatureMap::taylor2, true, kEps};
  return {};
}

}  // namespace

LinearAttentionCore::LinearAttentionCore(const ModelConfig& config, const Tensor& beta)
    : rope_(config), beta_(beta), options_(options_of(config.lincat.feature_map)) {}

Tensor LinearAttentionCore::operator()(const Qkv& qkv, LinearAttentionState* state) const {
  const int64_t position = state ? state->position : 0;
  const Tensor q = beta_.defined() ? mul(qkv.q, reshape(beta_, {beta_.dim(0), 1, 1})) : qkv.q;
  return linear_attention({rope_(q, position), rope_(qkv.k, position), qkv.v}, options_, state);
}

Tensor linear_attention(const Qkv& qkv, const LinearAttentionOptions& options, LinearAttentionState* state) {
  if (!state) return merge_heads(linear_attention(qkv.q, qkv.k, qkv.v, options));
  const auto [y, sums] = linear_attention_stretch(qkv.q, qkv.k, qkv.v, state->sums, options);
  state->sums = sums;
  state->position += qkv.q.dim(2);
  return merge_heads(y);
}

}  // namespace margay
