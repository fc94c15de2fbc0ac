#include "models/retention.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "engine/error.h"
#include "models/attention_core.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/gated_delta_rule.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

struct RetentionState : MixerState {
  Tensor sums;
};

Linear projection(const Scope& scope, int64_t in, int64_t out) { return {scope, in, out, false, projection_init()}; }

// ln(1 - 2^(-5 - h)) as [1, H, 1].
Tensor constant_log_decay(int64_t heads, DType dtype, Device device) {
  std::vector<double> values;
  for (int64_t h = 0; h < heads; ++h) values.push_back(std::log1p(-std::pow(2.0, -5.0 - static_cast<double>(h))));
  return from_values(values, {1, heads, 1}).to(dtype).to(device);
}

// The decays of GLA.
struct ForgetGate {
  static constexpr int64_t kRank = 16;
  static constexpr double kTemperature = 16;
  Linear fc1, fc2;

  ForgetGate(const Scope& scope, int64_t d_model, int64_t features)
      : fc1(projection(scope / "fc1", d_model, kRank)), fc2(scope / "fc2", kRank, features, true, projection_init()) {}
  /// [B, T, features].
  Tensor log_decay(const Tensor& x) const { return mul(logsigmoid(fc2(fc1(x))), 1 / kTemperature); }
};

class Retention : public Mixer {
 public:
  Retention(const ModelConfig& config, const Scope& scope, bool gated)
      : heads_(config.n_heads),
        features_(gated ? config.d_model / 2 : config.d_model),
        q_(projection(scope / "q_proj", config.d_model, features_)),
        k_(projection(scope / "k_proj", config.d_model, features_)),
        v_(projection(scope / "v_proj", config.d_model, config.d_model)),
        norm_((scope / "norm").parameter("weight", {config.d_model / heads_}, init::ones(), false)),
        out_(scope / "out_proj", config.d_model, config.d_model, false, residual_projection_init(config)) {
    if (gated) {
      forget_.emplace(scope / "gate", config.d_model, features_);
    } else {
      constant_ = constant_log_decay(heads_, scope.dtype(), scope.device());
    }
  }

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    const Tensor packed = linear(x, concat({q_.weight, k_.weight, v_.weight}, 0), {});
    const Tensors qkv = split(packed, -1, {features_, features_, x.dim(-1)});
    const Tensor q = split_heads(qkv[0], heads_), k = split_heads(qkv[1], heads_), v = split_heads(qkv[2], heads_);
    const Tensor log_decay =
        forget_ ? split_heads(forget_->log_decay(x), heads_) : expand(constant_, {x.dim(0), heads_, x.dim(1)});
    const Tensor y = recall(q, k, v, log_decay, static_cast<RetentionState*>(state));
    const Tensor read = context.read(merge_heads(y));
    const Tensor heads = reshape(read, {read.numel() / read.dim(-1), heads_, read.dim(-1) / heads_});
    return out_(reshape(rms_norm(heads, norm_), read.shape()));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<RetentionState>(); }

 private:
  static Tensor recall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                       RetentionState* state) {
    if (!state) return gated_delta_rule(q, k, v, log_decay, {});
    const auto [y, sums] = gated_delta_rule_stretch(q, k, v, log_decay, {}, state->sums);
    state->sums = sums;
    return y;
  }

  int64_t heads_, features_;  // features of all heads together
  Linear q_, k_, v_;
  Tensor norm_;
  Linear out_;
  std::optional<ForgetGate> forget_;
  Tensor constant_;  // decays, without a forget gate
};

}  // namespace

std::unique_ptr<Mixer> make_retnet(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Retention>(config, scope, false);
}

std::unique_ptr<Mixer> make_gla(const ModelConfig& config, int64_t, const Scope& scope) {
  if (config.d_model % (2 * config.n_heads) != 0)
    throw ConfigError(fmt::format("model.d_model must be a multiple of 2 * n_heads = {} with mixer \"gla\", got {}",
                                  2 * config.n_heads, config.d_model));
  return std::make_unique<Retention>(config, scope, true);
}

}  // namespace margay
