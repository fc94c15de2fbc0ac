#include "models/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "engine/error.h"
#include "engine/names.h"
#include "models/mixer.h"

namespace margay {
namespace {

// Far beyond any use, and small enough that products of two sizes fit 63 bits.
constexpr int64_t kLargestWidth = 1 << 20;
constexpr int64_t kLargestLength = 1 << 30;
constexpr int64_t kLargestVocabulary = (int64_t{1} << 31) - 1;  // token ids are int32

void append_mixer_keys(ModelConfig& m, std::vector<ConfigKey>& keys) {
  const ConfigRule size = whole(1, kLargestWidth);
  keys.insert(
      keys.end(),
      {
          {"model.cat.conv_width", &m.cat.conv_width, size},
          {"model.cat.conv_site", &m.cat.conv_site, one_of({"post", "input"})},
          {"model.cat.conv_sharing", &m.cat.conv_sharing, one_of({"depthwise", "per_head", "shared"})},
          {"model.cat.conv_on", &m.cat.conv_on, {.letters = "qkv"}},
          {"model.cat.conv_bias", &m.cat.conv_bias},
          {"model.cat.conv_init", &m.cat.conv_init, one_of({"uniform", "identity"})},
          {"model.cat.qk_norm", &m.cat.qk_norm, one_of({"none", "l2_input", "l2_head"})},
          {"model.lincat.feature_map", &m.lincat.feature_map, one_of({"elu1", "taylor2", "softmax", "identity"})},
          {"model.lcat.block_size", &m.lcat.block_size, size},
          {"model.lcat.top_k", &m.lcat.top_k, whole(0, kLargestLength)},
          {"model.lcat.landmark_sharing", &m.lcat.landmark_sharing, one_of({"shared", "per_head"})},
          {"model.lcat.landmark_query", &m.lcat.landmark_query},
          {"model.lcat.landmark_key", &m.lcat.landmark_key},
          {"model.lcat.gate", &m.lcat.gate, one_of({"grouped", "additive", "none"})},
          {"model.mamba.expand", &m.mamba.expand, size},
          {"model.mamba.d_state", &m.mamba.d_state, size},
          {"model.mamba.d_conv", &m.mamba.d_conv, size},
          {"model.mamba.head_dim", &m.mamba.head_dim, size},
          {"model.mamba.chunk", &m.mamba.chunk, size},
          {"model.s4d.d_state", &m.s4d.d_state, size},
          {"model.s4d.init", &m.s4d.init, one_of({"lin", "inv", "real"})},
          {"model.s4d.discretization", &m.s4d.discretization, one_of({"zoh", "bilinear"})},
          {"model.hyena.filter_width", &m.hyena.filter_width, size},
          {"model.hyena.filter_embed", &m.hyena.filter_embed, size},
          {"model.h3.d_state", &m.h3.d_state, size},
          {"model.h3.head_dim", &m.h3.head_dim, size},
          {"model.base_conv.kernel_size", &m.base_conv.kernel_size, whole(-1, kLargestLength)},
          {"model.based.feature_dim", &m.based.feature_dim, size},
          {"model.attention.window", &m.attention.window, whole(0, kLargestLength)},
      });
}

void require(bool ok, const std::string& message) {
  if (!ok) throw ConfigError(message);
}

}  // namespace

std::vector<ConfigKey> keys_of(ModelConfig& m) {
  const ConfigRule size = whole(1, kLargestWidth), share = real_below(0, 1);
  std::vector<ConfigKey> keys = {
      {"model.backbone", &m.backbone, one_of({"zoology", "gpt_neox"})},
      {"model.mixer", &m.mixer},
      {"model.d_model", &m.d_model, size},
      {"model.n_layers", &m.n_layers, size},
      {"model.n_heads", &m.n_heads, size},
      {"model.vocab_size", &m.vocab_size, whole(1, kLargestVocabulary)},
      {"model.max_seq_len", &m.max_seq_len, whole(1, kLargestLength)},
      {"model.position", &m.position, one_of({"none", "learned", "rope"})},
      {"model.rope_fraction", &m.rope_fraction, real(0, 1)},
      {"model.rope_base", &m.rope_base, real_between(0)},
      {"model.yarn_scale", &m.yarn_scale, real_between(0)},
      {"model.mlp", &m.mlp, one_of({"none", "identity", "gelu", "swiglu"})},
      {"model.mlp_ratio", &m.mlp_ratio, real_between(0, 1024)},
      {"model.tie_embeddings", &m.tie_embeddings},
      {"model.final_norm", &m.final_norm, one_of({"layer_norm", "rms_norm"})},
      {"model.dropout_embed", &m.dropout_embed, share},
      {"model.dropout_residual", &m.dropout_residual, share},
      {"model.dropout_attention", &m.dropout_attention, share},
  };
  append_mixer_keys(m, keys);
  return keys;
}

void validate(const ModelConfig& config) {
  ModelConfig copy = config;
  for (const ConfigKey& key : keys_of(copy)) key.check();
  require(config.d_model % config.n_heads == 0,
          fmt::format("model.n_heads must divide model.d_model = {}, got {}", config.d_model, config.n_heads));
  if (config.mlp == "gelu" || config.mlp == "swiglu" || config.backbone == "gpt_neox") {
    require(config.mlp_ratio * static_cast<double>(config.d_model) >= 1,
            fmt::format("model.mlp_ratio must give the MLP a hidden unit: {} * d_model {} is less than 1",
                        config.mlp_ratio, config.d_model));
  }
  const auto& kernels = config.base_conv.kernel_size;
  require(std::find(kernels.begin(), kernels.end(), 0) == kernels.end(),
          "model.base_conv.kernel_size must hold lengths of at least 1, or -1 for an implicit filter, got 0");
  const std::vector<std::string> mixers = mixer_names();
  for (const std::string& mixer : config.mixer) {
    if (std::find(mixers.begin(), mixers.end(), mixer) != mixers.end()) continue;
    const std::vector<std::string_view> names(mixers.begin(), mixers.end());
    throw ConfigError(fmt::format("model.mixer must be one of \"{}\", got {}; the nearest is \"{}\"",
                                  fmt::join(names, "\", \""), quoted(mixer), nearest_name(mixer, names)));
  }
  if (config.backbone == "gpt_neox") {
    for (const std::string& mixer : config.mixer) {
      require(mixer == "attention" || mixer == "cat",
              fmt::format("model.mixer must be \"attention\" or \"cat\" with backbone \"gpt_neox\", got {}",
                          quoted(mixer)));
    }
  }
}

}  // namespace margay
