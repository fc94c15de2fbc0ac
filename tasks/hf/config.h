#pragma once
#include <string>
#include <string_view>

#include "models/config.h"

namespace margay {

/// The architectures of the transformers package that models here can be exchanged with.
enum class HfArchitecture { gpt_neox, mamba, mamba2 };
/// "GPTNeoXForCausalLM" ...
std::string_view name_of(HfArchitecture architecture);

/// What the config.json of a Hugging Face folder describes.
struct HfModel {
  HfArchitecture architecture;
  ModelConfig config;
};

/// Reads config.json. Keys that do not change the function are ignored, and missing ones have the package's defaults.
/// Throws DataError naming the file and the key where it is damaged, or asks for what models here do not have.
HfModel load_hf_config(const std::string& path);

/// The architecture that computes the same function as a model with this config.
/// Throws ConfigError naming the key that no architecture has room for.
HfArchitecture hf_architecture_of(const ModelConfig& config);

/// The text of config.json. `dtype` is the one that the weights are stored in, as "float32".
/// Throws ConfigError as hf_architecture_of.
std::string to_hf_config(const ModelConfig& config, std::string_view dtype);

}  // namespace margay
