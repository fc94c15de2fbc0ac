#include "models/linear_attention.h"

#include "models/linear_attention_core.h"

namespace margay {
namespace {

struct State : MixerState {
  LinearAttentionState core;
};

class LinearAttention : public Mixer {
 public:
  LinearAttention(const ModelConfig& config, const Scope& scope)
      : projection_(config, scope), out_(output_projection(config, scope)), core_(config, {}) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    const Qkv qkv = projection_.heads(projection_.packed(x));
    return out_(context.read(core_(qkv, state ? &static_cast<State&>(*state).core : nullptr)));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<State>(); }

 private:
  QkvProjection projection_;
  Linear out_;
  LinearAttentionCore core_;
};

}  // namespace

std::unique_ptr<Mixer> make_linear_attention(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<LinearAttention>(config, scope);
}

}  // namespace margay
