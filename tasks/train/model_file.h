#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/language_model.h"
#include "tasks/config.h"
#include "tasks/tokenizer/tokenizer.h"

namespace margay {

class SafetensorsFile;

// A checkpoint is a folder. Its model.safetensors and config.toml make a model; what training needs beside them is in
// checkpoint.h.

/// The checkpoint that a path names: itself, or the newest one where it is a run. Throws DataError if it is neither.
std::string find_checkpoint(const std::string& run_or_checkpoint);

/// The configuration of a checkpoint.
Config load_checkpoint_config(const std::string& checkpoint);

/// Writes the tokenizer.json of text that is not bytes into a checkpoint or run; nothing if it is empty.
void save_tokenizer(const std::string& folder, const std::string& json);
/// The tokenizer.json of a checkpoint; "bytes" where it has none: a name for make_tokenizer and for task.tokenizer.
std::string checkpoint_tokenizer(const std::string& checkpoint);

/// Writes model.safetensors and config.toml into a folder, which is made if it is not there.
void save_model(const std::string& checkpoint, const Config& config, const LanguageModel& model);

/// Reads the parameters from model.safetensors, with its tensors in any order and of any float dtype. Throws DataError
/// naming the tensor that is missing, is no parameter of the model, or has another shape.
void load_parameters(const std::string& checkpoint, const LanguageModel& model);

/// The model of a checkpoint.
LanguageModel load_model(const std::string& checkpoint, const ModelConfig& config, Device device = {});

/// The tokenizer of a checkpoint: its tokenizer.json, else the one that a text task's configuration names. Throws
/// ConfigError where nothing names one, and what make_tokenizer throws.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& checkpoint, const Config& config);

/// Reads a tensor of this shape and dtype. Throws DataError naming it where the file holds something else; other float
/// dtypes are converted.
Tensor load_like(const SafetensorsFile& file, const std::string& name, const Tensor& like);
/// Throws DataError naming the first tensor of the file that is not in `names`.
void require_only(const SafetensorsFile& file, std::vector<std::string> names);

}  // namespace margay
