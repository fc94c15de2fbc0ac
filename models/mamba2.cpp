#include "models/mamba2.h"

#include <fmt/format.h>

#include "engine/error.h"
#include "models/layers.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/linear.h"
#include "ops/rms_norm_gated.h"
#include "ops/ssd.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

struct Mamba2State : MixerState {
  ConvState conv;
  Tensor scan;  // [B, H, N, P]; undefined before the first token
};

int64_t heads_of(const ModelConfig& config) {
  const int64_t width = config.mamba.expand * config.d_model;
  if (width % config.mamba.head_dim != 0)
    throw ConfigError(fmt::format("model.mamba.head_dim must divide model.mamba.expand * model.d_model = {}, got {}",
                                  width, config.mamba.head_dim));
  return width / config.mamba.head_dim;
}

class Mamba2 : public Mixer {
 public:
  Mamba2(const ModelConfig& config, const Scope& scope)
      : heads_(heads_of(config)),
        width_(config.mamba.expand * config.d_model),
        states_(config.mamba.d_state),
        chunk_(config.mamba.chunk),
        in_(scope / "in_proj", config.d_model, width_ + channels() + heads_, false,
            init::uniform_by_fan_in(config.d_model)),
        conv_weight_((scope / "conv1d").parameter("weight", {channels(), config.mamba.d_conv}, filter_init(config))),
        conv_bias_((scope / "conv1d").parameter("bias", {channels()}, filter_init(config), false)),
        dt_bias_(scope.parameter("dt_bias", {heads_}, init::inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4), false)),
        A_log_(scope.parameter("A_log", {heads_}, init::log_of_uniform(1, 16), false)),
        D_(scope.parameter("D", {heads_}, init::ones(), false)),
        norm_weight_((scope / "norm").parameter("weight", {width_}, init::ones(), false)),
        out_(scope / "out_proj", width_, config.d_model, false, init::uniform_by_fan_in(width_ * config.n_layers)) {}

  Tensor forward(const Tensor& input, const ForwardContext& context, MixerState* state) const override {
    auto* const mamba = static_cast<Mamba2State*>(state);
    // Apart, so that backwards their gradients need not be copied side by side.
    const auto project = [&](const Tensor& x, int64_t begin, int64_t end) {
      return linear(x, slice(in_.weight, 0, begin, end));
    };
    const int64_t last = width_ + channels();
    const Tensor projected = project(input, width_, last), step = project(input, last, last + heads_);
    const Tensor before = mamba ? mamba->conv.advance(projected, conv_weight_.dim(-1)) : Tensor();
    const Tensor filtered = silu(conv1d_causal(projected, conv_weight_, conv_bias_, before));
    const Tensors xBC = split(filtered, -1, {width_, states_, states_});
    const Tensors y = ssd({.x = xBC[0],
                           .step = softplus(add(step, dt_bias_)),
                           .A = neg(exp(A_log_)),
                           .B = xBC[1],
                           .C = xBC[2],
                           .D = D_,
                           .initial = mamba ? mamba->scan : Tensor(),
                           .chunk = chunk_});
    if (mamba) mamba->scan = y[1];
    const Tensor z = project(context.read(input), 0, width_);
    return out_(rms_norm_gated(context.read(y[0]), z, norm_weight_));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<Mamba2State>(); }

 private:
  static Initializer filter_init(const ModelConfig& config) { return init::uniform_by_fan_in(config.mamba.d_conv); }
  // What the filter runs over: x, B and C.
  int64_t channels() const { return width_ + 2 * states_; }

  int64_t heads_, width_, states_, chunk_;
  Linear in_;
  Tensor conv_weight_, conv_bias_, dt_bias_, A_log_, D_, norm_weight_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba2(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Mamba2>(config, scope);
}

}  // namespace margay
