#include "models/rwkv.h"

#include <algorithm>
#include <cmath>

#include "models/layers.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/unary.h"
#include "ops/wkv.h"

namespace margay {
namespace {

struct RwkvState : MixerState {
  ConvState shift;
  Tensor sums;  // [B, 3, d]; undefined before the first token
};

// Initial time constants by channel and depth, as the public code has them. They are made for 12 layers, and left so
// for fewer.
struct TimeConstants {
  double width, depth_rising, depth_falling;

  TimeConstants(const ModelConfig& config, int64_t layer) : width(static_cast<double>(config.d_model)) {
    const auto layers = static_cast<double>(std::max<int64_t>(12, config.n_layers));
    depth_rising = static_cast<double>(layer) / (layers - 1);
    depth_falling = 1 - static_cast<double>(layer) / layers;
  }
  Initializer decay() const {
    return [*this](RandomStream&, int64_t i) {
      const double place = static_cast<double>(i) / std::max(1.0, width - 1);
      return -5 + 8 * std::pow(place, 0.7 + 1.3 * depth_rising);
    };
  }
  Initializer first() const {
    return [](RandomStream&, int64_t i) { return std::log(0.3) + 0.5 * static_cast<double>((i + 1) % 3 - 1); };
  }
  // (i / d)^(exponent * depth_falling) + offset * depth_rising.
  Initializer mix(double exponent, double offset) const {
    return [*this, exponent, offset](RandomStream&, int64_t i) {
      return std::pow(static_cast<double>(i) / width, exponent * depth_falling) + offset * depth_rising;
    };
  }
};

class Rwkv : public Mixer {
 public:
  Rwkv(const ModelConfig& config, int64_t layer, const Scope& scope)
      : Rwkv(config.d_model, TimeConstants(config, layer), scope) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const rwkv = static_cast<RwkvState*>(state);
    const Tensor before = rwkv ? rwkv->shift.advance(x, 2) : Tensor();
    const auto mixed = [&](const Tensor& mix) { return conv1d_causal(x, stack({mix, 1 - mix}, -1), {}, before); };
    const Tensors y = wkv({.w = neg(exp(time_decay_)),
                           .u = time_first_,
                           .k = key_(mixed(mix_k_)),
                           .v = value_(mixed(mix_v_)),
                           .initial = rwkv ? rwkv->sums : Tensor()});
    if (rwkv) rwkv->sums = y[1];
    return output_(mul(sigmoid(receptance_(context.read(mixed(mix_r_)))), context.read(y[0])));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<RwkvState>(); }

 private:
  Rwkv(int64_t width, const TimeConstants& time, const Scope& scope)
      : time_decay_(scope.parameter("time_decay", {width}, time.decay(), false)),
        time_first_(scope.parameter("time_first", {width}, time.first(), false)),
        mix_k_(scope.parameter("time_mix_k", {width}, time.mix(1, 0), false)),
        mix_v_(scope.parameter("time_mix_v", {width}, time.mix(1, 0.3), false)),
        mix_r_(scope.parameter("time_mix_r", {width}, time.mix(0.5, 0), false)),
        key_(scope / "key", width, width, false, init::normal(0.02)),
        value_(scope / "value", width, width, false, init::normal(0.02)),
        receptance_(scope / "receptance", width, width, false, init::normal(0.02)),
        output_(scope / "output", width, width, false, init::normal(0.02)) {}

  Tensor time_decay_, time_first_, mix_k_, mix_v_, mix_r_;
  Linear key_, value_, receptance_, output_;
};

}  // namespace

std::unique_ptr<Mixer> make_rwkv(const ModelConfig& config, int64_t layer, const Scope& scope) {
  return std::make_unique<Rwkv>(config, layer, scope);
}

}  // namespace margay
