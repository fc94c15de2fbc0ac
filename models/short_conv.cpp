#include "models/short_conv.h"

#include <algorithm>
#include <cmath>

#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/view.h"

namespace margay {
namespace {

Shape filter_shape(const ModelConfig& config) {
  const int64_t width = config.cat.conv_width;
  if (config.cat.conv_sharing == "shared") return {width};
  return {config.cat.conv_sharing == "per_head" ? config.n_heads : config.d_model, width};
}

}  // namespace

Tensor ConvState::advance(const Tensor& x, int64_t width) {
  const Tensor before = recent;
  if (width == 1) return {};
  const Tensor seen = before.defined() ? concat({before, x}, 1) : x;
  const int64_t missing = std::max<int64_t>(0, width - 1 - seen.dim(1));
  const Tensor last = slice(seen, 1, std::max<int64_t>(0, seen.dim(1) - (width - 1)), seen.dim(1));
  recent = missing == 0 ? last.clone() : concat({zeros({x.dim(0), missing, x.dim(2)}, x.dtype(), x.device()), last}, 1);
  return before;
}

ShortConv::ShortConv(const Scope& scope, const ModelConfig& config) {
  const int64_t width = config.cat.conv_width;
  // A depthwise filter has a fan-in of W, whatever its sharing.
  const Initializer uniform = init::uniform(1 / std::sqrt(static_cast<double>(width)));
  const bool identity = config.cat.conv_init == "identity";
  weight = scope.parameter("weight", filter_shape(config), identity ? init::identity_filter(width, 0.02) : uniform);
  if (config.cat.conv_bias) bias = scope.parameter("bias", {config.d_model}, identity ? init::zeros() : uniform, false);
}

ShortConv::ShortConv(const Scope& scope, int64_t channels, int64_t width) {
  const Initializer uniform = init::uniform(1 / std::sqrt(static_cast<double>(width)));
  weight = scope.parameter("weight", {channels, width}, uniform);
  bias = scope.parameter("bias", {channels}, uniform, false);
}

Tensor ShortConv::operator()(const Tensor& x, ConvState* state) const {
  return conv1d_causal(x, weight, bias, state ? state->advance(x, weight.dim(-1)) : Tensor());
}

Tensor ShortConv::grouped() const { return weight.ndim() == 1 ? unsqueeze(weight, 0) : weight; }

}  // namespace margay
