#include "models/s4d.h"

#include "models/attention_core.h"
#include "models/diagonal_ssm.h"
#include "ops/glu.h"
#include "ops/unary.h"

namespace margay {
namespace {

struct S4dState : MixerState {
  DiagonalSsmState ssm;
};

class S4d : public Mixer {
 public:
  S4d(const ModelConfig& config, const Scope& scope)
      : ssm_(scope, config.d_model, checked_states("model.s4d.d_state", config.s4d.d_state), config.s4d.init,
             config.s4d.discretization == "zoh" ? Discretization::zoh : Discretization::bilinear),
        out_(scope / "out_proj", config.d_model, 2 * config.d_model, true, projection_init()) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    const Tensor y = ssm_(x, state ? &static_cast<S4dState&>(*state).ssm : nullptr);
    return glu(out_(gelu(context.read(y))));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<S4dState>(); }

 private:
  DiagonalSsmBank ssm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_s4d(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<S4d>(config, scope);
}

}  // namespace margay
