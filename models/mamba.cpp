#include "models/mamba.h"

#include "models/layers.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/linear.h"
#include "ops/selective_scan.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

struct MambaState : MixerState {
  ConvState conv;
  Tensor scan;  // [B, E, N]; undefined before the first token
};

class Mamba : public Mixer {
 public:
  Mamba(const ModelConfig& config, const Scope& scope)
      : width_(config.mamba.expand * config.d_model),
        states_(config.mamba.d_state),
        rank_((config.d_model + 15) / 16),
        in_(scope / "in_proj", config.d_model, 2 * width_, false, init::uniform_by_fan_in(config.d_model)),
        conv_weight_((scope / "conv1d").parameter("weight", {width_, config.mamba.d_conv}, filter_init(config))),
        conv_bias_((scope / "conv1d").parameter("bias", {width_}, filter_init(config), false)),
        x_(scope / "x_proj", width_, rank_ + 2 * states_, false, init::uniform_by_fan_in(width_)),
        dt_weight_((scope / "dt_proj").parameter("weight", {width_, rank_}, init::uniform_by_fan_in(rank_))),
        dt_bias_((scope / "dt_proj")
                     .parameter("bias", {width_}, init::inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4), false)),
        A_log_(scope.parameter("A_log", {width_, states_}, init::log_of_count(states_), false)),
        D_(scope.parameter("D", {width_}, init::ones(), false)),
        out_(scope / "out_proj", width_, config.d_model, false, init::uniform_by_fan_in(width_ * config.n_layers)) {}

  Tensor forward(const Tensor& input, const ForwardContext& context, MixerState* state) const override {
    auto* const mamba = static_cast<MambaState*>(state);
    // Apart, so that backwards the gradients of x and z need not be copied side by side.
    const Tensor projected = linear(input, slice(in_.weight, 0, 0, width_));
    const Tensor z = linear(input, slice(in_.weight, 0, width_, 2 * width_));
    const Tensor before = mamba ? mamba->conv.advance(projected, conv_weight_.dim(-1)) : Tensor();
    const Tensor x = silu(conv1d_causal(projected, conv_weight_, conv_bias_, before));
    const Tensors selected = split(x_(x), -1, {rank_, states_, states_});
    const Tensors y = selective_scan({.u = x,
                                      .delta = linear(selected[0], dt_weight_),
                                      .A = neg(exp(A_log_)),
                                      .B = selected[1],
                                      .C = selected[2],
                                      .D = D_,
                                      .z = z,
                                      .delta_bias = dt_bias_,
                                      .delta_softplus = true,
                                      .initial = mamba ? mamba->scan : Tensor()});
    if (mamba) mamba->scan = y[1];
    return out_(context.read(y[0]));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<MambaState>(); }

 private:
  static Initializer filter_init(const ModelConfig& config) { return init::uniform_by_fan_in(config.mamba.d_conv); }

  int64_t width_, states_, rank_;
  Linear in_;
  Tensor conv_weight_, conv_bias_;
  Linear x_;
  Tensor dt_weight_, dt_bias_, A_log_, D_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Mamba>(config, scope);
}

}  // namespace margay
