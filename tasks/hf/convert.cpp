#include "tasks/hf/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/file.h"
#include "engine/mapped_file.h"
#include "engine/names.h"
#include "models/language_model.h"
#include "tasks/hf/config.h"
#include "tasks/hf/weights.h"
#include "tasks/train/folders.h"
#include "tasks/train/model_file.h"

namespace margay {
namespace {

namespace fs = std::filesystem;

struct Dtype {
  std::string_view stored, torch;
};
constexpr std::array<Dtype, 3> kDtypes{{{"F32", "float32"}, {"F16", "float16"}, {"BF16", "bfloat16"}}};

const Dtype* find_dtype(std::string_view stored) {
  const auto found =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const Dtype& dtype) { return dtype.stored == stored; });
  return found == kDtypes.end() ? nullptr : &*found;
}

/// A parameter as the other side has it.
struct HfTensor {
  std::string name;
  Shape shape;
  bool reversed = false;  // [C, W] here, [C, 1, W] with the last tap first there
};

/// "NEW..." for "OLD...".
void replace_prefix(std::string& name, std::string_view old_prefix, std::string_view new_prefix) {
  if (name.starts_with(old_prefix)) name.replace(0, old_prefix.size(), new_prefix);
}

HfTensor hf_tensor(HfArchitecture architecture, const ParameterShape& parameter) {
  HfTensor tensor{parameter.name, parameter.shape};
  if (architecture == HfArchitecture::gpt_neox) return tensor;  // has these names already
  replace_prefix(tensor.name, "embed.", "backbone.embeddings.");
  replace_prefix(tensor.name, "head.", "lm_head.");
  replace_prefix(tensor.name, "final_norm.", "backbone.norm_f.");
  replace_prefix(tensor.name, "blocks.", "backbone.layers.");
  if (const size_t at = tensor.name.find(".norm1."); at != std::string::npos) tensor.name.replace(at, 7, ".norm.");
  if (tensor.name.ends_with(".conv1d.weight")) {
    tensor.shape = {parameter.shape[0], 1, parameter.shape[1]};
    tensor.reversed = true;
  }
  return tensor;
}

/// The names that a tensor has in some folders: those of other versions of the package, and of the first Mamba.
std::string found_name(const HfWeights& weights, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kAliases{
      {{"embed_out.weight", "lm_head.weight"}, {"backbone.embeddings.weight", "backbone.embedding.weight"}}};
  for (const auto& [usual, other] : kAliases)
    if (name == usual && !weights.contains(usual) && weights.contains(other)) return std::string(other);
  return name;
}

/// Tensors that are no weights: masks and frequencies that follow from the sizes.
bool is_buffer(HfArchitecture architecture, std::string_view name) {
  return architecture == HfArchitecture::gpt_neox &&
         (name.ends_with(".attention.bias") || name.ends_with(".attention.masked_bias") ||
          name.ends_with(".rotary_emb.inv_freq"));
}

/// Rows of W elements of `size` bytes, each row backwards.
std::vector<uint8_t> reversed_rows(std::span<const uint8_t> bytes, int64_t width, size_t size) {
  std::vector<uint8_t> result(bytes.size());
  const auto taps = static_cast<size_t>(width);
  for (size_t i = 0; i < bytes.size() / size; ++i) {
    const size_t row = i / taps, tap = i % taps;
    std::memcpy(result.data() + (row * taps + taps - 1 - tap) * size, bytes.data() + i * size, size);
  }
  return result;
}

/// The tensors of a file to be written.
class Output {
 public:
  /// A tensor that lies in a file, as a parameter or as transformers has it: the rows of a filter are turned around.
  void add(const RawTensor& source, const std::string& name, const Shape& shape, bool reversed) {
    RawTensor tensor{name, source.dtype_name, shape, source.bytes};
    if (reversed) {
      const size_t size = source.bytes.size() / static_cast<size_t>(std::max<int64_t>(1, shape.numel()));
      memory_.push_back(reversed_rows(source.bytes, shape[shape.ndim() - 1], size));
      tensor.bytes = memory_.back();
    }
    tensors_.push_back(std::move(tensor));
  }

  /// Filters that pass the current token, [channels, width], all in the same memory.
  void add_identity_filters(const std::vector<std::string>& names, int64_t channels, int64_t width) {
    std::vector<uint8_t> bytes(static_cast<size_t>(channels * width) * sizeof(float));
    const float one = 1;
    for (int64_t c = 0; c < channels; ++c)
      std::memcpy(bytes.data() + static_cast<size_t>(c * width) * sizeof(float), &one, sizeof(float));
    memory_.push_back(std::move(bytes));
    for (const std::string& name : names) tensors_.push_back({name, "F32", {channels, width}, memory_.back()});
  }

  const std::vector<RawTensor>& tensors() const { return tensors_; }

 private:
  std::vector<RawTensor> tensors_;
  std::deque<std::vector<uint8_t>> memory_;  // of what is not just a part of a file
};

/// Throws unless there are at least as many tensors as layers: what is made by their number stays as small as the file.
void require_layers(const std::string& path, std::string_view key, int64_t layers, size_t tensors) {
  if (static_cast<size_t>(layers) > tensors)
    throw DataError(
        fmt::format("{}: {} is {}, but there are only {} tensors", quoted_path(path), key, layers, tensors));
}

void require_tensor(const std::string& path, const RawTensor& tensor, const Shape& shape) {
  if (tensor.shape != shape || !find_dtype(tensor.dtype_name))
    throw DataError(fmt::format("{}: tensor {} must be F32, F16 or BF16 {}, got {}{}", quoted_path(path),
                                margay::quoted(tensor.name), to_string(shape), tensor.dtype_name,
                                to_string(tensor.shape)));
}

[[noreturn]] void fail_missing(const HfWeights& weights, const std::string& name) {
  const std::vector<std::string_view> names(weights.names().begin(), weights.names().end());
  throw DataError(fmt::format("{}: has no tensor {}; the nearest is {}", quoted_path(weights.path()),
                              margay::quoted(name), margay::quoted(nearest_name(name, names))));
}

/// Throws for a tensor that is neither used nor known to be of no use.
void require_no_others(const HfWeights& weights, const HfModel& model, std::vector<std::string> used) {
  std::sort(used.begin(), used.end());
  for (const std::string& name : weights.names()) {
    if (std::binary_search(used.begin(), used.end(), name) || is_buffer(model.architecture, name)) continue;
    const std::string& path = weights.file_of(name).path();
    if (name == "lm_head.weight" && model.config.tie_embeddings) {
      const RawTensor head = weights.raw(name),
                      embedding = weights.raw(found_name(weights, "backbone.embeddings.weight"));
      if (head.dtype_name == embedding.dtype_name &&
          std::equal(head.bytes.begin(), head.bytes.end(), embedding.bytes.begin(), embedding.bytes.end()))
        continue;
      throw DataError(
          fmt::format("{}: tensor \"lm_head.weight\" differs from the embedding, to which config.json ties it "
                      "(\"tie_word_embeddings\")",
                      quoted_path(path)));
    }
    const std::vector<std::string_view> known(used.begin(), used.end());
    throw DataError(fmt::format("{}: tensor {} is not one of a {}; the nearest is {}", quoted_path(path),
                                margay::quoted(name), name_of(model.architecture),
                                margay::quoted(nearest_name(name, known))));
  }
}

/// The configuration of a checkpoint whose model came from elsewhere.
Config config_around(const ModelConfig& model) {
  constexpr int64_t kLongestWindow = 2048;
  Config config;
  config.model = model;
  config.task.name = "text";
  config.task.vocab_size = 256;
  config.task.seq_len = std::min(model.max_seq_len, kLongestWindow);
  return config;
}

/// Throws where what is written would replace what is read, or a run.
void require_other_folder(const std::string& source, const std::string& target) {
  std::error_code error;
  if (fs::equivalent(source, target, error))
    throw ConfigError(fmt::format("{} is the folder that is read; another one must be written", quoted_path(target)));
  if (fs::exists(fs::path(target) / "state.json", error))
    throw ConfigError(
        fmt::format("{} is the checkpoint of a run, which other weights would destroy", quoted_path(target)));
}

std::string in(const std::string& folder, const char* file) { return (fs::path(folder) / file).string(); }

/// Copies the tokenizer.json, where there is one: it is the same file on both sides.
void copy_tokenizer(const std::string& source, const std::string& target) {
  const std::string path = in(source, "tokenizer.json");
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const MappedFile file(path);
  write_file_atomically(in(target, "tokenizer.json"),
                        {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
}

}  // namespace

void import_hf(const std::string& folder, const std::string& checkpoint, int64_t conv_width) {
  const std::string config_path = in(folder, "config.json");
  const HfWeights weights = HfWeights::open(folder);
  const HfModel model = load_hf_config(config_path);
  if (conv_width > 0 && model.architecture != HfArchitecture::gpt_neox)
    throw ConfigError(fmt::format("filters can be added to a GPTNeoXForCausalLM, got {}", name_of(model.architecture)));
  require_other_folder(folder, checkpoint);
  require_layers(config_path, "\"num_hidden_layers\"", model.config.n_layers, weights.names().size());
  Output output;
  std::vector<std::string> used;
  for (const ParameterShape& parameter : parameter_shapes(model.config)) {
    const HfTensor wanted = hf_tensor(model.architecture, parameter);
    const std::string name = found_name(weights, wanted.name);
    if (!weights.contains(name)) fail_missing(weights, name);
    const RawTensor tensor = weights.raw(name);
    require_tensor(weights.file_of(name).path(), tensor, wanted.shape);
    output.add(tensor, parameter.name, parameter.shape, wanted.reversed);
    used.push_back(name);
  }
  require_no_others(weights, model, std::move(used));
  Config config = config_around(model.config);
  if (conv_width > 0) {
    config.model.mixer = {"cat"};
    config.model.cat.conv_width = conv_width;
    config.model.cat.conv_init = "identity";
    validate(config.model);
    std::vector<std::string> names;
    for (int64_t layer = 0; layer < config.model.n_layers; ++layer)
      for (const char letter : {'q', 'k', 'v'})
        names.push_back(fmt::format("gpt_neox.layers.{}.attention.conv_{}.weight", layer, letter));
    output.add_identity_filters(names, config.model.d_model, conv_width);
  }
  make_folders(checkpoint);
  save_raw_safetensors(in(checkpoint, "model.safetensors"), output.tensors());
  write_file_atomically(in(checkpoint, "config.toml"), to_toml(config));
  copy_tokenizer(folder, checkpoint);
}

void export_hf(const std::string& run_or_checkpoint, const std::string& folder) {
  const std::string checkpoint = find_checkpoint(run_or_checkpoint);
  const ModelConfig config = load_checkpoint_config(checkpoint).model;
  validate(config);
  const HfArchitecture architecture = hf_architecture_of(config);
  require_other_folder(checkpoint, folder);
  const SafetensorsFile file = SafetensorsFile::open(in(checkpoint, "model.safetensors"));
  require_layers(file.path(), "model.n_layers of config.toml", config.n_layers, file.names().size());
  Output output;
  std::vector<std::string> names;
  for (const ParameterShape& parameter : parameter_shapes(config)) {
    const SafetensorsFile::Info info = file.info(parameter.name);
    const RawTensor tensor{parameter.name, info.dtype_name, info.shape, file.bytes(parameter.name)};
    require_tensor(file.path(), tensor, parameter.shape);
    const HfTensor target = hf_tensor(architecture, parameter);
    output.add(tensor, target.name, target.shape, target.reversed);
    names.push_back(parameter.name);
  }
  require_only(file, names);
  const std::string_view dtype = find_dtype(output.tensors().front().dtype_name)->torch;
  make_folders(folder);
  save_raw_safetensors(in(folder, "model.safetensors"), output.tensors(), {{"format", "pt"}});
  write_file_atomically(in(folder, "config.json"), to_hf_config(config, dtype));
  copy_tokenizer(checkpoint, folder);
}

}  // namespace margay
