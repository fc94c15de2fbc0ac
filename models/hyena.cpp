#include "models/hyena.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/error.h"
#include "models/attention_core.h"
#include "models/implicit_filter.h"
#include "models/long_conv.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

constexpr int64_t kShortWidth = 3;

int64_t checked_embed(const ModelConfig& config) {
  const int64_t embed = config.hyena.filter_embed;
  if (embed < 3 || embed % 2 == 0)
    throw ConfigError(fmt::format("model.hyena.filter_embed must be odd and at least 3, got {}", embed));
  return embed;
}

/// e^(-t |delta_c|), t from 0 to 1 over the longest sequence: the slowest channel falls to 1e-2 at t = 1.5, the fastest
/// at 0.3. [max_seq_len, d].
Tensor decay_table(const ModelConfig& config, const Scope& scope) {
  const std::vector<double> times = evenly_spaced(0, 1, config.max_seq_len);
  const std::vector<double> rates = evenly_spaced(std::log(1e-2) / 1.5, std::log(1e-2) / 0.3, config.d_model);
  std::vector<double> values;
  values.reserve(times.size() * rates.size());
  for (const double t : times)
    for (const double rate : rates) values.push_back(std::exp(-t * std::fabs(rate)));
  return from_values(values, {config.max_seq_len, config.d_model}).to(scope.dtype()).to(scope.device());
}

/// The network that makes the long filters.
class SineFilter {
 public:
  SineFilter(const ModelConfig& config, const Scope& scope)
      : features_(position_features(config.max_seq_len, checked_embed(config), scope.dtype(), scope.device())),
        decay_(decay_table(config, scope)),
        fc1_(scope / "fc1", config.hyena.filter_embed, config.hyena.filter_width, true, projection_init()),
        fc2_(scope / "fc2", config.hyena.filter_width, config.hyena.filter_width, true, projection_init()),
        fc3_(scope / "fc3", config.hyena.filter_width, config.hyena.filter_width, true, projection_init()),
        fc4_(scope / "fc4", config.hyena.filter_width, config.d_model, false, projection_init()),
        freq_(scope.parameter("freq", {config.hyena.filter_width}, init::ones(), false)) {}

  /// The first taps of all channels, [d, at most max_seq_len].
  Tensor operator()(int64_t taps) const {
    const int64_t length = std::min(taps, decay_.dim(0));
    Tensor h = slice(features_, 0, 0, length);
    for (const Linear* layer : {&fc1_, &fc2_, &fc3_}) h = sin(mul((*layer)(h), freq_));
    return transpose(mul(fc4_(h), slice(decay_, 0, 0, length)), 0, 1);
  }

 private:
  Tensor features_, decay_;
  Linear fc1_, fc2_, fc3_, fc4_;
  Tensor freq_;
};

struct HyenaState : MixerState {
  ConvState short_conv;
  LongConvState long_conv;
};

class Hyena : public Mixer {
 public:
  Hyena(const ModelConfig& config, const Scope& scope)
      : max_seq_len_(config.max_seq_len),
        in_(scope / "in_proj", config.d_model, 3 * config.d_model, true, projection_init()),
        short_conv_(scope / "short_conv", 3 * config.d_model, kShortWidth),
        filter_(config, scope / "filter"),
        skip_(scope.parameter("D", {config.d_model}, init::normal(1), false)),
        out_(scope / "out_proj", config.d_model, config.d_model, true, residual_projection_init(config)) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const hyena = static_cast<HyenaState*>(state);
    const Tensors parts = filtered(in_(x), hyena ? &hyena->short_conv : nullptr);
    const Tensor v = long_conv(
        mul(parts[2], parts[0]), [&](int64_t taps) { return filter_(taps); }, skip_, max_seq_len_,
        hyena ? &hyena->long_conv : nullptr);
    return out_(mul(context.read(v), context.read(parts[1])));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<HyenaState>(); }

 private:
  /// x1, x2 and v, filtered one by one: so that each is contiguous, as the products want them.
  Tensors filtered(const Tensor& packed, ConvState* state) const {
    const Tensor before = state ? state->advance(packed, kShortWidth) : Tensor();
    const Tensors initial = before.defined() ? chunk(before, -1, 3) : Tensors(3);
    const Tensors weights = chunk(short_conv_.weight, 0, 3), biases = chunk(short_conv_.bias, 0, 3);
    Tensors parts = chunk(packed, -1, 3);
    for (size_t i = 0; i < 3; ++i) parts[i] = conv1d_causal(parts[i], weights[i], biases[i], initial[i]);
    return parts;
  }

  int64_t max_seq_len_;
  Linear in_;
  ShortConv short_conv_;
  SineFilter filter_;
  Tensor skip_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_hyena(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Hyena>(config, scope);
}

}  // namespace margay
