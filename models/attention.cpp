#include "models/attention.h"

#include "models/attention_core.h"
#include "ops/concat.h"

namespace margay {
namespace {

struct AttentionState : MixerState {
  KvCache cache;
};

class Attention : public Mixer {
 public:
  Attention(const ModelConfig& config, const Scope& scope)
      : heads_(config.n_heads),
        projection_(scope, config.d_model, true),
        out_(scope / "out_proj", config.d_model, config.d_model, true, residual_projection_init(config)),
        core_(config, scope, config.attention.window, {}) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    const Tensors qkv = chunk(projection_.packed(x), -1, 3);
    KvCache* cache = state ? &static_cast<AttentionState&>(*state).cache : nullptr;
    return out_(
        core_({split_heads(qkv[0], heads_), split_heads(qkv[1], heads_), split_heads(qkv[2], heads_)}, context, cache));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<AttentionState>(); }

 private:
  int64_t heads_;
  QkvProjection projection_;
  Linear out_;
  AttentionCore core_;
};

}  // namespace

std::unique_ptr<Mixer> make_attention(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Attention>(config, scope);
}

}  // namespace margay
