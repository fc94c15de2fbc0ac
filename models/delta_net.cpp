#include "models/delta_net.h"

#include <cmath>
#include <optional>

#include "models/attention_core.h"
#include "models/short_conv.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/gated_delta_rule.h"
#include "ops/l2_normalize.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace margay {
namespace {

constexpr int64_t kConvWidth = 4;

struct DeltaNetState : MixerState {
  ConvState conv;
  Tensor sums;
};

Linear projection(const Scope& scope, int64_t in, int64_t out) { return {scope, in, out, false, projection_init()}; }

Tensor filter(const Scope& scope, int64_t channels) {
  return scope.parameter("weight", {channels, kConvWidth}, init::uniform(1 / std::sqrt(double{kConvWidth})));
}

// What Gated DeltaNet adds.
struct Gates {
  Linear decay, output;
  Tensor A_log, dt_bias;

  Gates(const Scope& scope, int64_t d_model, int64_t heads, int64_t value_width)
      : decay(projection(scope / "a_proj", d_model, heads)),
        output(projection(scope / "gate", d_model, value_width)),
        A_log(scope.parameter("A_log", {heads}, init::log_of_uniform(0, 16), false)),
        dt_bias(scope.parameter("dt_bias", {heads}, init::inverse_softplus_of_log_uniform(1e-3, 1e-1, 1e-4), false)) {}

  /// [B, H, T].
  Tensor log_decay(const Tensor& x) const {
    return transpose(neg(mul(exp(A_log), softplus(add(decay(x), dt_bias)))), 1, 2);
  }
};

class DeltaNet : public Mixer {
 public:
  DeltaNet(const ModelConfig& config, const Scope& scope, bool gated)
      : heads_(config.n_heads),
        width_(config.d_model),
        value_width_(gated ? 2 * config.d_model : config.d_model),
        q_(projection(scope / "q_proj", width_, width_)),
        k_(projection(scope / "k_proj", width_, width_)),
        v_(projection(scope / "v_proj", width_, value_width_)),
        beta_(projection(scope / "beta_proj", width_, heads_)),
        conv_q_(filter(scope / "conv_q", width_)),
        conv_k_(filter(scope / "conv_k", width_)),
        conv_v_(filter(scope / "conv_v", value_width_)),
        norm_((scope / "norm").parameter("weight", {value_width_ / heads_}, init::ones(), false)),
        out_(scope / "out_proj", value_width_, width_, false, residual_projection_init(config)) {
    if (gated) gates_.emplace(scope, width_, heads_, value_width_);
  }

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* mixer_state) const override {
    auto* const state = static_cast<DeltaNetState*>(mixer_state);
    const Tensor packed = linear(x, concat({q_.weight, k_.weight, v_.weight}, 0), {});
    const Tensor filtered = silu(conv1d_causal(packed, concat({conv_q_, conv_k_, conv_v_}, 0), {},
                                               state ? state->conv.advance(packed, kConvWidth) : Tensor()));
    const Tensors qkv = split(filtered, -1, {width_, width_, value_width_});
    const Tensor q = l2_normalize(split_heads(qkv[0], heads_)), k = l2_normalize(split_heads(qkv[1], heads_));
    const Tensor beta = transpose(sigmoid(beta_(x)), 1, 2), log_decay = gates_ ? gates_->log_decay(x) : Tensor();
    const Tensor y = recall(q, k, split_heads(qkv[2], heads_), log_decay, beta, state);
    const Tensor read = context.read(merge_heads(y));
    const Tensor heads = reshape(read, {read.numel() / value_width_, heads_, value_width_ / heads_});
    const Tensor rows = reshape(rms_norm(heads, norm_), read.shape());
    return out_(gates_ ? mul(rows, silu(gates_->output(context.read(x)))) : rows);
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<DeltaNetState>(); }

 private:
  static Tensor recall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay, const Tensor& beta,
                       DeltaNetState* state) {
    if (!state) return gated_delta_rule(q, k, v, log_decay, beta);
    const auto [y, sums] = gated_delta_rule_stretch(q, k, v, log_decay, beta, state->sums);
    state->sums = sums;
    return y;
  }

  int64_t heads_, width_, value_width_;
  Linear q_, k_, v_, beta_;
  Tensor conv_q_, conv_k_, conv_v_, norm_;
  Linear out_;
  std::optional<Gates> gates_;
};

}  // namespace

std::unique_ptr<Mixer> make_delta_net(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<DeltaNet>(config, scope, false);
}

std::unique_ptr<Mixer> make_gated_delta_net(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<DeltaNet>(config, scope, true);
}

}  // namespace margay
