#include "models/h3.h"

#include <fmt/format.h>

#include <cmath>

#include "engine/error.h"
#include "models/attention_core.h"
#include "models/diagonal_ssm.h"
#include "models/long_conv.h"
#include "ops/concat.h"
#include "ops/head_outer.h"
#include "ops/view.h"

namespace margay {
namespace {

int64_t heads_of(const ModelConfig& config) {
  if (config.d_model % config.h3.head_dim != 0)
    throw ConfigError(
        fmt::format("model.h3.head_dim must divide model.d_model = {}, got {}", config.d_model, config.h3.head_dim));
  return config.d_model / config.h3.head_dim;
}

struct H3State : MixerState {
  LongConvState shift;
  DiagonalSsmState ssm;
};

class H3 : public Mixer {
 public:
  H3(const ModelConfig& config, const Scope& scope)
      : heads_(heads_of(config)),
        head_dim_(config.h3.head_dim),
        projection_(config, scope),
        shift_(scope / "shift", config),
        ssm_(scope / "diag", heads_, checked_states("model.h3.d_state", config.h3.d_state), "lin",
             Discretization::bilinear),
        out_(scope / "out_proj", config.d_model, config.d_model, true, projection_init()) {}

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const h3 = static_cast<H3State*>(state);
    const int64_t B = x.dim(0), T = x.dim(1), d = x.dim(2);
    const Tensors qkv = chunk(projection_.packed(x), -1, 3);
    const Tensor k = shift_(qkv[1], h3 ? &h3->shift : nullptr);
    const auto rows = [](const Tensor& y) { return reshape(y, {y.numel() / y.dim(-1), y.dim(-1)}); };
    const Tensor outer = head_outer(rows(k), rows(qkv[2]), head_dim_);  // channels (head, d1, d2)
    const Tensor summed = ssm_(reshape(outer, {B, T, d * head_dim_}), h3 ? &h3->ssm : nullptr);
    const Tensor q = context.read(qkv[0]);
    return out_(reshape(head_product(rows(q), rows(context.read(summed)), head_dim_), q.shape()));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<H3State>(); }

 private:
  /// The shift model with its input matrix fixed to e1, so that C is its kernel.
  struct Shift {
    Tensor C, D;

    Shift(const Scope& scope, const ModelConfig& config)
        : C(scope.parameter("C", {config.d_model, config.h3.d_state},
                            init::uniform(1 / std::sqrt(static_cast<double>(config.h3.d_state))))),
          D(scope.parameter("D", {config.d_model}, init::normal(1), false)) {}
    Tensor operator()(const Tensor& k, LongConvState* state) const {
      return long_conv(
          k, [&](int64_t) { return C; }, D, C.dim(1), state);
    }
  };

  int64_t heads_, head_dim_;
  QkvProjection projection_;
  Shift shift_;
  DiagonalSsmBank ssm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_h3(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<H3>(config, scope);
}

}  // namespace margay
