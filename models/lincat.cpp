#include "models/lincat.h"

#include "models/cat_front.h"
#include "models/linear_attention_core.h"

namespace margay {
namespace {

struct LincatState : MixerState {
  CatFrontState front;
  LinearAttentionState core;
};

class Lincat : public Mixer {
 public:
  Lincat(const ModelConfig& config, const Scope& scope)
      : front_(config, scope), core_(config, front_.beta()), out_(output_projection(config, scope)) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const lincat = static_cast<LincatState*>(state);
    const Qkv qkv = front_(x, lincat ? &lincat->front : nullptr);
    return out_(context.read(core_(qkv, lincat ? &lincat->core : nullptr)));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<LincatState>(); }

 private:
  CatFront front_;
  LinearAttentionCore core_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_lincat(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Lincat>(config, scope);
}

}  // namespace margay
