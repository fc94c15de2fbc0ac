#include "models/cat.h"

#include "models/cat_front.h"

namespace margay {
namespace {

struct CatState : MixerState {
  CatFrontState front;
  KvCache cache;
};

class Cat : public Mixer {
 public:
  Cat(const ModelConfig& config, const Scope& scope)
      : front_(config, scope), core_(config, scope, 0, front_.beta()), out_(output_projection(config, scope)) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const cat = static_cast<CatState*>(state);
    const Qkv qkv = front_(x, cat ? &cat->front : nullptr);
    return out_(core_(qkv, context, cat ? &cat->cache : nullptr));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<CatState>(); }

 private:
  CatFront front_;
  AttentionCore core_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_cat(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Cat>(config, scope);
}

}  // namespace margay
