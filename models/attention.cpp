#include "models/attention.h"

#include "models/attention_core.h"

namespace margay {
namespace {

struct AttentionState : MixerState {
  KvCache cache;
};

class Attention : public Mixer {
 public:
  Attention(const ModelConfig& config, const Scope& scope)
      : projection_(config, scope),
        out_(output_projection(config, scope)),
        core_(config, scope, config.attention.window, {}) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    KvCache* cache = state ? &static_cast<AttentionState&>(*state).cache : nullptr;
    return out_(core_(projection_.heads(projection_.packed(x)), context, cache));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<AttentionState>(); }

 private:
  QkvProjection projection_;
  Linear out_;
  AttentionCore core_;
};

}  // namespace

std::unique_ptr<Mixer> make_attention(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Attention>(config, scope);
}

}  // namespace margay
