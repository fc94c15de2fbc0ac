#include "tasks/train/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/safetensors.h"
#include "tasks/train/folders.h"

namespace margay {
namespace {

namespace fs = std::filesystem;

std::string model_file(const std::string& checkpoint) { return (fs::path(checkpoint) / "model.safetensors").string(); }
std::string config_file(const std::string& checkpoint) { return (fs::path(checkpoint) / "config.toml").string(); }
std::string tokenizer_file(const std::string& folder) { return (fs::path(folder) / "tokenizer.json").string(); }

constexpr int64_t kBytes = 256;

}  // namespace

std::string find_checkpoint(const std::string& run_or_checkpoint) {
  const fs::path path(run_or_checkpoint);
  std::error_code error;
  for (const fs::path& folder : {path, path / "checkpoint"}) {
    if (fs::exists(folder / "model.safetensors", error)) return folder.string();
  }
  const char* reason =
      fs::exists(path, error) ? "is neither a run nor a checkpoint: it has no model.safetensors" : "does not exist";
  throw DataError(fmt::format("{}: {}", quoted_path(run_or_checkpoint), reason));
}

Config load_checkpoint_config(const std::string& checkpoint) { return load_config(config_file(checkpoint)); }

void save_tokenizer(const std::string& folder, const std::string& json) {
  if (!json.empty()) write_file_atomically(tokenizer_file(folder), json);
}

std::string checkpoint_tokenizer(const std::string& checkpoint) {
  std::error_code ignored;
  return fs::exists(tokenizer_file(checkpoint), ignored) ? tokenizer_file(checkpoint) : "bytes";
}

void save_model(const std::string& checkpoint, const Config& config, const LanguageModel& model) {
  make_folders(checkpoint);
  std::vector<NamedTensor> tensors;
  for (const Parameter& parameter : model.parameters()) tensors.push_back({parameter.name, parameter.value});
  save_safetensors(model_file(checkpoint), tensors);
  write_file_atomically(config_file(checkpoint), to_toml(config));
}

Tensor load_like(const SafetensorsFile& file, const std::string& name, const Tensor& like) {
  const SafetensorsFile::Info info = file.info(name);
  if (info.shape != like.shape() || !info.dtype || !is_float(*info.dtype)) {
    throw DataError(fmt::format("{}: tensor \"{}\" must be a float {}, got {}{}", quoted_path(file.path()), name,
                                to_string(like.shape()), info.dtype_name, to_string(info.shape)));
  }
  return file.load(name, like.device()).to(like.dtype());
}

void require_only(const SafetensorsFile& file, std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  for (const std::string& name : file.names()) {
    if (std::binary_search(names.begin(), names.end(), name)) continue;
    const std::vector<std::string_view> known(names.begin(), names.end());
    throw DataError(fmt::format("{}: tensor {} is not one of the model of config.toml; the nearest is \"{}\"",
                                quoted_path(file.path()), margay::quoted(name), nearest_name(name, known)));
  }
}

void load_parameters(const std::string& checkpoint, const LanguageModel& model) {
  const SafetensorsFile file = SafetensorsFile::open(model_file(checkpoint));
  std::vector<std::string> names;
  std::vector<Tensor> values;  // all are checked before the first is changed
  for (const Parameter& parameter : model.parameters()) {
    names.push_back(parameter.name);
    values.push_back(load_like(file, parameter.name, parameter.value));
  }
  require_only(file, names);
  for (size_t i = 0; i < values.size(); ++i) model.parameters()[i].value.copy_from(values[i]);
}

LanguageModel load_model(const std::string& checkpoint, const ModelConfig& config, Device device) {
  LanguageModel model(config, 0, DType::f32, device);
  load_parameters(checkpoint, model);
  return model;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& checkpoint, const Config& config) {
  const std::string own = checkpoint_tokenizer(checkpoint);
  if (own != "bytes") return make_tokenizer(own);
  // An imported checkpoint has no task; as many tokens as there are bytes speak for themselves.
  if (config.task.name != "text" && config.model.vocab_size != kBytes) {
    throw ConfigError(fmt::format("{} names no tokenizer, and its model.vocab_size is {}, not the {} of bytes",
                                  quoted_path(checkpoint), config.model.vocab_size, kBytes));
  }
  return make_tokenizer(config.task.name == "text" ? config.task.tokenizer : "bytes");
}

}  // namespace margay
