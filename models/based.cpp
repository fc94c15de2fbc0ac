#include "models/based.h"

#include "models/linear_attention_core.h"
#include "ops/concat.h"
#include "ops/linear.h"

namespace margay {
namespace {

constexpr LinearAttentionOptions kOptions{FeatureMap::taylor2, true, 1e-12};

struct BasedState : MixerState {
  LinearAttentionState core;
};

class Based : public Mixer {
 public:
  Based(const ModelConfig& config, const Scope& scope)
      : heads_(config.n_heads),
        features_(config.n_heads * config.based.feature_dim),
        q_(scope / "q_proj", config.d_model, features_, false, projection_init()),
        k_(scope / "k_proj", config.d_model, features_, false, projection_init()),
        v_(scope / "v_proj", config.d_model, config.d_model, false, projection_init()),
        out_(scope / "out_proj", config.d_model, config.d_model, false, projection_init()) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    const Tensor packed = linear(x, concat({q_.weight, k_.weight, v_.weight}, 0), {});
    const Tensors qkv = split(packed, -1, {features_, features_, x.dim(-1)});
    const Tensor y =
        linear_attention({split_heads(qkv[0], heads_), split_heads(qkv[1], heads_), split_heads(qkv[2], heads_)},
                         kOptions, state ? &static_cast<BasedState&>(*state).core : nullptr);
    return out_(context.read(y));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<BasedState>(); }

 private:
  int64_t heads_, features_;  // features of all heads together
  Linear q_, k_, v_, out_;
};

}  // namespace

std::unique_ptr<Mixer> make_based(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Based>(config, scope);
}

}  // namespace margay
