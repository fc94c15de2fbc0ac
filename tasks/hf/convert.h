#pragma once
#include <string>

namespace margay {

// Checkpoints to and from folders that the transformers package reads: config.json with model.safetensors, or with
// shards. Elements are moved and never computed with, in f32, f16 or bf16, so that a folder that was imported and
// exported again holds the same bits. A tokenizer.json beside them goes along.

/// Makes a checkpoint of a folder. `conv_width` > 0 turns attention into cat, with filters of so many taps that pass
/// the current token: the function stays what it was. Buffers that older versions stored are left out. Throws DataError
/// naming the file and what is wrong in it, ConfigError for filters in a model without attention.
void import_hf(const std::string& folder, const std::string& checkpoint, int64_t conv_width);

/// Makes a folder of a checkpoint, with its elements in the dtypes that they have there.
/// Throws ConfigError naming the key of a model that transformers does not have, DataError for a damaged checkpoint.
void export_hf(const std::string& checkpoint, const std::string& folder);

}  // namespace margay
