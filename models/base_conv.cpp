#include "models/base_conv.h"

#include <algorithm>

#include "models/attention_core.h"
#include "models/implicit_filter.h"
#include "models/long_conv.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

constexpr int64_t kFeatures = 3, kHidden = 16;

/// filtered * proj(x) + x, where it is read.
Tensor gated(const Tensor& x, const Tensor& filtered, const Linear& proj, const ForwardContext& context) {
  const Tensor rows = context.read(x);
  return add(mul(context.read(filtered), proj(rows)), rows);
}

class ShortBaseConv : public Mixer {
 public:
  ShortBaseConv(const ModelConfig& config, int64_t width, const Scope& scope)
      : proj_(scope / "proj", config.d_model, config.d_model, true, projection_init()),
        conv_(scope / "conv", config.d_model, width) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    return gated(x, conv_(x, state ? &static_cast<State&>(*state).conv : nullptr), proj_, context);
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<State>(); }

 private:
  struct State : MixerState {
    ConvState conv;
  };

  Linear proj_;
  ShortConv conv_;
};

class LongBaseConv : public Mixer {
 public:
  LongBaseConv(const ModelConfig& config, const Scope& scope)
      : max_seq_len_(config.max_seq_len),
        proj_(scope / "proj", config.d_model, config.d_model, true, projection_init()),
        fc1_(scope / "filter" / "fc1", kFeatures, kHidden, true, projection_init()),
        fc2_(scope / "filter" / "fc2", kHidden, config.d_model, true, projection_init()),
        features_(position_features(config.max_seq_len, kFeatures, scope.dtype(), scope.device())),
        skip_(ones({config.d_model}, scope.dtype(), scope.device())) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    LongConvState* const seen = state ? &static_cast<State&>(*state).conv : nullptr;
    const auto filter = [&](int64_t taps) {
      const Tensor z = slice(features_, 0, 0, std::min(taps, max_seq_len_));
      return transpose(fc2_(relu(fc1_(z))), 0, 1);
    };
    return gated(x, long_conv(x, filter, skip_, max_seq_len_, seen), proj_, context);
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<State>(); }

 private:
  struct State : MixerState {
    LongConvState conv;
  };

  int64_t max_seq_len_;
  Linear proj_, fc1_, fc2_;
  Tensor features_, skip_;
};

}  // namespace

std::unique_ptr<Mixer> make_base_conv(const ModelConfig& config, int64_t layer, const Scope& scope) {
  const auto& widths = config.base_conv.kernel_size;
  const int64_t width = widths[static_cast<size_t>(layer) % widths.size()];
  if (width > 0) return std::make_unique<ShortBaseConv>(config, width, scope);
  return std::make_unique<LongBaseConv>(config, scope);
}

}  // namespace margay
