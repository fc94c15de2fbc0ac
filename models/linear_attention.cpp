#include "models/linear_attention.h"

#include "models/linear_attention_core.h"
#include "ops/concat.h"

namespace margay {
namespace {

struct State : MixerState {
  LinearAttentionState core;
};

class LinearAttention : public Mixer {
 public:
  LinearAttention(const ModelConfig& config, const Scope& scope)
      : heads_(config.n_heads),
        projection_(scope, config.d_model, true),
        out_(scope / "out_proj", config.d_model, config.d_model, true, residual_projection_init(config)),
        core_(config, {}) {}

  Tensor forward(const Tensor& x, const ForwardContext&, MixerState* state) const override {
    const Tensors qkv = chunk(projection_.packed(x), -1, 3);
    return out_(core_({split_heads(qkv[0], heads_), split_heads(qkv[1], heads_), split_heads(qkv[2], heads_)},
                      state ? &static_cast<State&>(*state).core : nullptr));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<State>(); }

 private:
  int64_t heads_;
  QkvProjection projection_;
  Linear out_;
  LinearAttentionCore core_;
};

}  // namespace

std::unique_ptr<Mixer> make_linear_attention(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<LinearAttention>(config, scope);
}

}  // namespace margay
