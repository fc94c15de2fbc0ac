#include "tasks/hf/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/names.h"
#include "tasks/hf/json_object.h"

namespace margay {
namespace {

constexpr size_t kMostBytes = 1 << 20;
constexpr int64_t kLargestWidth = 1 << 20;
constexpr int64_t kLargestLength = 1 << 30;
constexpr int64_t kLargestVocabulary = (int64_t{1} << 31) - 1;
constexpr double kEpsilon = 1e-5;  // of every norm here
constexpr double kDefaultBase = 10000, kDefaultFraction = 0.25;

struct Architecture {
  HfArchitecture value;
  std::string_view name, model_type;
};
constexpr std::array kArchitectures{Architecture{HfArchitecture::gpt_neox, "GPTNeoXForCausalLM", "gpt_neox"},
                                    Architecture{HfArchitecture::mamba, "MambaForCausalLM", "mamba"},
                                    Architecture{HfArchitecture::mamba2, "Mamba2ForCausalLM", "mamba2"}};

const Architecture& entry_of(HfArchitecture value) {
  return *std::find_if(kArchitectures.begin(), kArchitectures.end(),
                       [&](const Architecture& entry) { return entry.value == value; });
}

HfArchitecture architecture_of(const JsonObject& json) {
  std::vector<std::string_view> names;
  for (const Architecture& entry : kArchitectures) names.push_back(entry.name);
  const auto listed = json.has("architectures") ? json.texts("architectures") : std::vector<std::string>();
  for (const Architecture& entry : kArchitectures) {
    const bool found = listed.empty() ? json.text("model_type", "") == entry.model_type
                                      : std::find(listed.begin(), listed.end(), entry.name) != listed.end();
    if (found) return entry.value;
  }
  const std::string got = listed.empty() ? "" : fmt::format(" (it names {})", margay::quoted(listed.front()));
  json.fail("architectures", fmt::format("a list with one of \"{}\"{}", fmt::join(names, "\", \""), got));
}

// What a key must be for the function to be the same as here; a missing key has the package's default.
void require_flag(const JsonObject& json, std::string_view key, bool wanted, bool otherwise) {
  if (json.flag(key, otherwise) != wanted) json.fail(key, wanted ? "true" : "false");
}
void require_text(const JsonObject& json, std::string_view key, std::string_view wanted) {
  if (json.text(key, wanted) != wanted) json.fail(key, margay::quoted(wanted));
}
void require_epsilon(const JsonObject& json, std::string_view key) {
  if (json.number(key, kEpsilon) != kEpsilon) json.fail(key, "1e-5");
}
void require_integer(const JsonObject& json, std::string_view key, int64_t wanted) {
  if (json.has(key) && json.integer(key, 0, int64_t{1} << 60) != wanted) json.fail(key, std::to_string(wanted));
}

// A share of elements that are dropped in training.
double dropout(const JsonObject& json, std::string_view key) {
  const double share = json.number(key, 0);
  if (!(share >= 0 && share < 1)) json.fail(key, "a number in [0, 1)");
  return share;
}

void read_sizes(const JsonObject& json, ModelConfig& config) {
  config.d_model = json.integer("hidden_size", 1, kLargestWidth);
  config.n_layers = json.integer("num_hidden_layers", 1, kLargestWidth);
  config.vocab_size = json.integer("vocab_size", 1, kLargestVocabulary);
}

// Channels of a head that are rotated, as transformers counts them.
int64_t rotated(double fraction, int64_t head_dim) {
  return static_cast<int64_t>(static_cast<double>(head_dim) * fraction);
}

void read_rope_keys(const JsonObject& json, std::string_view base, std::string_view fraction, ModelConfig& config) {
  if (json.has(base)) {
    config.rope_base = json.number(base);
    if (!(config.rope_base > 1 && std::isfinite(config.rope_base))) json.fail(base, "a number above 1");
  }
  if (json.has(fraction)) {
    config.rope_fraction = json.number(fraction);
    if (!(config.rope_fraction >= 0 && config.rope_fraction <= 1)) json.fail(fraction, "a number in [0, 1]");
  }
}

// Throws unless the channels that the fraction stands for are pairs.
void require_pairs(const JsonObject& json, std::string_view fraction, const ModelConfig& config) {
  const int64_t head_dim = config.d_model / config.n_heads;
  if (rotated(config.rope_fraction, head_dim) % 2 != 0)
    json.fail(fraction, fmt::format("a share of the {} channels of a head that is an even number", head_dim));
}

void read_rope(const JsonObject& json, ModelConfig& config) {
  config.position = "rope";
  config.rope_base = kDefaultBase;
  config.rope_fraction = kDefaultFraction;
  read_rope_keys(json, "rotary_emb_base", "rotary_pct", config);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!json.has(key)) continue;
    const JsonObject rope = json.object(key);
    require_text(rope, rope.has("type") ? "type" : "rope_type", "default");
    read_rope_keys(rope, "rope_theta", "partial_rotary_factor", config);
    if (rope.has("partial_rotary_factor")) require_pairs(rope, "partial_rotary_factor", config);
  }
  require_pairs(json, "rotary_pct", config);
  if (rotated(config.rope_fraction, config.d_model / config.n_heads) == 0) config.position = "none";
}

// The ratio that mlp_width() makes the wanted number of hidden units of.
double ratio_for(int64_t hidden, int64_t d_model) {
  double ratio = static_cast<double>(hidden) / static_cast<double>(d_model);
  while (static_cast<int64_t>(ratio * static_cast<double>(d_model)) < hidden) ratio = std::nextafter(ratio, INFINITY);
  return ratio;
}

ModelConfig read_neox(const JsonObject& json) {
  ModelConfig config;
  config.backbone = "gpt_neox";
  config.mixer = {"attention"};
  read_sizes(json, config);
  config.n_heads = json.integer("num_attention_heads", 1, kLargestWidth);
  if (config.d_model % config.n_heads != 0)
    json.fail("num_attention_heads", fmt::format("a divisor of hidden_size = {}", config.d_model));
  config.max_seq_len = json.integer("max_position_embeddings", 1, kLargestLength);
  config.mlp = "gelu";
  config.mlp_ratio = ratio_for(json.integer("intermediate_size", 1, kLargestWidth), config.d_model);
  config.tie_embeddings = false;
  config.dropout_embed = config.dropout_residual = dropout(json, "hidden_dropout");
  config.dropout_attention = dropout(json, "attention_dropout");
  read_rope(json, config);
  require_text(json, "hidden_act", "gelu");
  require_epsilon(json, "layer_norm_eps");
  require_flag(json, "use_parallel_residual", true, true);
  require_flag(json, "attention_bias", true, true);
  require_flag(json, "tie_word_embeddings", false, false);
  return config;
}

// The keys that mamba and mamba2 share. Neither looks at positions, so any length will do.
ModelConfig read_mamba_keys(const JsonObject& json, const char* mixer, bool tied_by_default) {
  constexpr int64_t kLength = 2048;
  ModelConfig config;
  config.mixer = {mixer};
  read_sizes(json, config);
  config.max_seq_len = kLength;
  config.final_norm = "rms_norm";
  config.tie_embeddings = json.flag("tie_word_embeddings", tied_by_default);
  config.mamba.d_state = json.integer("state_size", 1, kLargestWidth);
  if (json.has("expand")) config.mamba.expand = json.integer("expand", 1, kLargestWidth);
  if (json.has("conv_kernel")) config.mamba.d_conv = json.integer("conv_kernel", 1, kLargestWidth);
  require_integer(json, "intermediate_size", config.mamba.expand * config.d_model);
  require_text(json, "hidden_act", "silu");
  require_epsilon(json, "layer_norm_epsilon");
  require_flag(json, "use_bias", false, false);
  require_flag(json, "use_conv_bias", true, true);
  return config;
}

ModelConfig read_mamba(const JsonObject& json) {
  ModelConfig config = read_mamba_keys(json, "mamba", true);
  if (json.has("time_step_rank") && json.json("time_step_rank") != "\"auto\"")
    require_integer(json, "time_step_rank", (config.d_model + 15) / 16);
  return config;
}

ModelConfig read_mamba2(const JsonObject& json) {
  ModelConfig config = read_mamba_keys(json, "mamba2", false);
  const int64_t width = config.mamba.expand * config.d_model;
  config.mamba.head_dim = json.integer("head_dim", 1, kLargestWidth);
  if (width % config.mamba.head_dim != 0) json.fail("head_dim", fmt::format("a divisor of the inner width {}", width));
  if (json.integer("num_heads", 1, kLargestWidth) != width / config.mamba.head_dim)
    json.fail("num_heads", std::to_string(width / config.mamba.head_dim));
  if (json.has("chunk_size")) config.mamba.chunk = json.integer("chunk_size", 1, kLargestWidth);
  if (json.integer("n_groups", 1, kLargestWidth) != 1) json.fail("n_groups", "1");
  require_flag(json, "rms_norm", true, true);
  if (json.has("time_step_limit")) {
    const std::string limit = json.json("time_step_limit");
    constexpr std::array kNone{"[0.0,\"Infinity\"]", "[0,\"Infinity\"]", "[0.0,{\"__float__\":\"Infinity\"}]"};
    if (std::find(kNone.begin(), kNone.end(), limit) == kNone.end())
      json.fail("time_step_limit", "no limit, [0.0, Infinity]");
  }
  return config;
}

void require(bool ok, std::string_view key, std::string_view wanted, const std::string& got, std::string_view why) {
  if (!ok) throw ConfigError(fmt::format("{} must be {} {}, got {}", key, wanted, why, got));
}

bool all_mixers_are(const ModelConfig& config, std::string_view name) {
  return std::all_of(config.mixer.begin(), config.mixer.end(), [&](const std::string& m) { return m == name; });
}

// The share of a head that transformers rounds to the channels that are rotated here.
double fraction_for(const ModelConfig& config) {
  if (config.position == "none") return 0;
  const int64_t head_dim = config.d_model / config.n_heads;
  const int64_t wanted = 2 * static_cast<int64_t>(config.rope_fraction * static_cast<double>(head_dim) / 2);
  if (rotated(config.rope_fraction, head_dim) == wanted) return config.rope_fraction;
  double fraction = static_cast<double>(wanted) / static_cast<double>(head_dim);
  while (rotated(fraction, head_dim) < wanted) fraction = std::nextafter(fraction, 1.0);
  return fraction;
}

}  // namespace

std::string_view name_of(HfArchitecture architecture) { return entry_of(architecture).name; }

HfModel load_hf_config(const std::string& path) {
  const JsonObject json = JsonObject::load(path, kMostBytes);
  const HfArchitecture architecture = architecture_of(json);
  const ModelConfig config = architecture == HfArchitecture::gpt_neox ? read_neox(json)
                             : architecture == HfArchitecture::mamba  ? read_mamba(json)
                                                                      : read_mamba2(json);
  try {
    validate(config);
  } catch (const ConfigError& error) {
    throw DataError(fmt::format("{}: {}", quoted_path(path), error.what()));
  }
  return {architecture, config};
}

HfArchitecture hf_architecture_of(const ModelConfig& config) {
  if (config.backbone == "gpt_neox") {
    const std::string why = "to be a GPTNeoXForCausalLM";
    for (const std::string& mixer : config.mixer)
      require(mixer == "attention", "model.mixer", "\"attention\"", margay::quoted(mixer), why);
    require(config.position != "learned", "model.position", "\"rope\" or \"none\"", margay::quoted(config.position),
            why);
    require(config.yarn_scale == 1, "model.yarn_scale", "1", fmt::format("{}", config.yarn_scale), why);
    require(config.attention.window == 0, "model.attention.window", "0", std::to_string(config.attention.window), why);
    return HfArchitecture::gpt_neox;
  }
  for (const HfArchitecture architecture : {HfArchitecture::mamba, HfArchitecture::mamba2}) {
    const Architecture& entry = entry_of(architecture);
    if (!all_mixers_are(config, entry.model_type)) continue;
    const std::string why = fmt::format("to be a {}", entry.name);
    require(config.final_norm == "rms_norm", "model.final_norm", "\"rms_norm\"", margay::quoted(config.final_norm),
            why);
    require(config.position != "learned", "model.position", "\"none\"", margay::quoted(config.position), why);
    return architecture;
  }
  throw ConfigError(fmt::format(
      "only backbone \"gpt_neox\" with attention, and \"zoology\" with mamba or mamba2 alone, are models of the "
      "transformers package, got \"{}\" with \"{}\"",
      config.backbone, fmt::join(config.mixer, "\", \"")));
}

std::string to_hf_config(const ModelConfig& config, std::string_view dtype) {
  const Architecture& entry = entry_of(hf_architecture_of(config));
  nlohmann::ordered_json json{{"architectures", nlohmann::ordered_json::array({entry.name})},
                              {"model_type", entry.model_type},
                              {"torch_dtype", dtype},
                              {"vocab_size", config.vocab_size},
                              {"hidden_size", config.d_model},
                              {"num_hidden_layers", config.n_layers}};
  if (entry.value == HfArchitecture::gpt_neox) {
    json.update({{"num_attention_heads", config.n_heads},
                 {"intermediate_size", static_cast<int64_t>(config.mlp_ratio * static_cast<double>(config.d_model))},
                 {"max_position_embeddings", config.max_seq_len},
                 {"rotary_pct", fraction_for(config)},
                 {"rotary_emb_base", config.rope_base},
                 {"hidden_act", "gelu"},
                 {"hidden_dropout", config.dropout_residual},
                 {"attention_dropout", config.dropout_attention},
                 {"layer_norm_eps", kEpsilon},
                 {"use_parallel_residual", true},
                 {"attention_bias", true},
                 {"tie_word_embeddings", false}});
    return json.dump(2) + '\n';
  }
  const int64_t width = config.mamba.expand * config.d_model;
  json.update({{"state_size", config.mamba.d_state},
               {"expand", config.mamba.expand},
               {"conv_kernel", config.mamba.d_conv},
               {"hidden_act", "silu"},
               {"layer_norm_epsilon", kEpsilon},
               {"use_bias", false},
               {"use_conv_bias", true},
               {"tie_word_embeddings", config.tie_embeddings}});
  if (entry.value == HfArchitecture::mamba) {
    json.update({{"intermediate_size", width}, {"time_step_rank", (config.d_model + 15) / 16}});
  } else {
    json.update({{"head_dim", config.mamba.head_dim},
                 {"num_heads", width / config.mamba.head_dim},
                 {"n_groups", 1},
                 {"chunk_size", config.mamba.chunk}});
  }
  return json.dump(2) + '\n';
}

}  // namespace margay
