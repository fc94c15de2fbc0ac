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
    : options_(config.cat), heads_(config.n_heads), projection_(config, scope) {
  for (size_t i = 0; i < 3; ++i)
    if (options_.conv_on.find(kLetters[i]) != std::string::npos)
      conv_[i].emplace(scope / ("conv_" + std::string(1, kLetters[i])), config);
  if (options_.qk_norm == "l2_head") {
    const auto head_dim = static_cast<double>(config.d_model / config.n_heads);
    beta_ = scope.parameter("beta", {config.n_heads}, init::constant(std::sqrt(head_dim)), false);
  }
}

Qkv CatFront::operator()(const Tensor& x, CatFrontState* state) const {
  const Qkv qkv = options_.conv_site == "post" ? project_then_filter(x, state) : filter_then_project(x, state);
  if (beta_.defined()) return {l2_normalize(qkv.q), l2_normalize(qkv.k), qkv.v};
  return qkv;
}

Qkv CatFront::project_then_filter(const Tensor& x, CatFrontState* state) const {
  const bool unit_rows = options_.qk_norm == "l2_input";
  if (conv_[0] && conv_[1] && conv_[2] && !unit_rows) {
    // All filters in one pass: three times as many groups of channels.
    const Tensor packed = projection_.packed(x);
    const Tensor weight = projection_.pack({conv_[0]->grouped(), conv_[1]->grouped(), conv_[2]->grouped()});
    const Tensor bias =
        conv_[0]->bias.defined() ? projection_.pack({conv_[0]->bias, conv_[1]->bias, conv_[2]->bias}) : Tensor();
    const Tensor initial = state ? state->packed.advance(packed, weight.dim(-1)) : Tensor();
    return projection_.heads(conv1d_causal(packed, weight, bias, initial));
  }
  Qkv qkv;
  if (unit_rows) {
    const Tensor rows = l2_normalize(x);
    const auto project = [&](const Tensor& u, size_t letter) {
      return split_heads(projection_.letter(letter)(u), heads_);
    };
    qkv = {project(rows, 0), project(rows, 1), project(x, 2)};
  } else {
    qkv = projection_.heads(projection_.packed(x));
  }
  const auto filter = [&](Tensor& heads, size_t letter) {
    if (!conv_[letter]) return;
    heads = split_heads((*conv_[letter])(merge_heads(heads), state ? &state->single[letter] : nullptr), heads_);
  };
  filter(qkv.q, 0);
  filter(qkv.k, 1);
  filter(qkv.v, 2);
  return qkv;
}

Qkv CatFront::filter_then_project(const Tensor& x, CatFrontState* state) const {
  const auto letter = [&](size_t i) { return split_heads(filter_then_project(x, i, state), heads_); };
  return {letter(0), letter(1), letter(2)};
}

// For one of q, k, v: [B, T, d].
Tensor CatFront::filter_then_project(const Tensor& x, size_t letter, CatFrontState* state) const {
  const Linear project = projection_.letter(letter);
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
