#include "models/cat_front.h"

#include <cmath>

#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/l2_normalize.h"
#include "ops/linear.h"
#include "ops/view.h"

namespace margay {
namespace {

constexpr std::array<char, 3> kLetters{'q', 'k', 'v'};
constexpr size_t kValue = 2;

}  // namespace

CatFront::CatFront(const ModelConfig& config, const Scope& scope)
    : options_(config.cat), heads_(config.n_heads), projection_(scope, config.d_model, true) {
  for (size_t i = 0; i < 3; ++i)
    if (options_.conv_on.find(kLetters[i]) != std::string::npos)
      conv_[i].emplace(scope / ("conv_" + std::string(1, kLetters[i])), config);
  if (options_.qk_norm == "l2_head") {
    const auto head_dim = static_cast<double>(config.d_model / config.n_heads);
    beta_ = scope.parameter("beta", {config.n_heads}, init::constant(std::sqrt(head_dim)), false);
  }
}

Qkv CatFront::operator()(const Tensor& x, CatFrontState* state) const {
  Tensors qkv;
  if (options_.conv_site == "post") {
    qkv = chunk(project_then_filter(x, state), -1, 3);
  } else {
    for (size_t i = 0; i < 3; ++i) qkv.push_back(filter_then_project(x, i, state));
  }
  for (Tensor& t : qkv) t = split_heads(t, heads_);
  if (beta_.defined()) return {l2_normalize(qkv[0]), l2_normalize(qkv[1]), qkv[2]};
  return {qkv[0], qkv[1], qkv[2]};
}

// [B, T, 3d]: the filtered projections side by side.
Tensor CatFront::project_then_filter(const Tensor& x, CatFrontState* state) const {
  Tensor packed;
  if (options_.qk_norm == "l2_input") {
    const Tensor rows = l2_normalize(x);
    packed = concat({projection_.q(rows), projection_.k(rows), projection_.v(x)}, -1);
  } else {
    packed = projection_.packed(x);
  }
  if (conv_[0] && conv_[1] && conv_[2]) {
    // All filters in one pass: three times as many groups of channels.
    const Tensor weight = concat({conv_[0]->grouped(), conv_[1]->grouped(), conv_[2]->grouped()}, 0);
    const Tensor bias =
        conv_[0]->bias.defined() ? concat({conv_[0]->bias, conv_[1]->bias, conv_[2]->bias}, 0) : Tensor();
    return conv1d_causal(packed, weight, bias, state ? state->packed.advance(packed, weight.dim(-1)) : Tensor());
  }
  Tensors parts = chunk(packed, -1, 3);
  for (size_t i = 0; i < 3; ++i)
    if (conv_[i]) parts[i] = (*conv_[i])(parts[i], state ? &state->single[i] : nullptr);
  return concat(parts, -1);
}

// The projection of the filtered input for one of q, k, v: [B, T, d].
Tensor CatFront::filter_then_project(const Tensor& x, size_t letter, CatFrontState* state) const {
  const Linear& project = letter == 0 ? projection_.q : letter == 1 ? projection_.k : projection_.v;
  const bool normalise = options_.qk_norm == "l2_input" && letter != kValue;
  const auto rows = [&](const Tensor& u) { return normalise ? l2_normalize(u) : u; };
  if (!conv_[letter]) return project(rows(x));
  const ShortConv& conv = *conv_[letter];
  if (options_.conv_sharing != "per_head") return project(rows(conv(x, state ? &state->single[letter] : nullptr)));
  // Each head filters the whole input with its own filter and projects it with its own rows.
  const Tensor initial = state ? state->single[letter].advance(x, conv.weight.dim(-1)) : Tensor();
  const int64_t head_dim = x.dim(-1) / heads_;
  Tensors outputs;
  for (int64_t h = 0; h < heads_; ++h) {
    const Tensor filtered = conv1d_causal(x, select(conv.weight, 0, h), conv.bias, initial);
    outputs.push_back(linear(rows(filtered), slice(project.weight, 0, h * head_dim, (h + 1) * head_dim),
                             slice(project.bias, 0, h * head_dim, (h + 1) * head_dim)));
  }
  return concat(outputs, -1);
}

}  // namespace margay
