#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/safetensors.h"

namespace margay {

/// The weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json lists.
/// Every error is a DataError that names the file. Pickle files, which may run code when they are read, are refused
/// with advice.
class HfWeights {
 public:
  /// Reads the headers. Throws for an index that names a file outside of the folder, a shard that is missing, does not
  /// hold a tensor it should, or holds one that the index does not know, and for a total size that is not theirs.
  static HfWeights open(const std::string& folder);

  /// In the order of the files and of their data.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return file_of_.contains(name); }
  /// The file that holds a tensor, which must be there.
  const SafetensorsFile& file_of(std::string_view name) const;
  /// The tensor as it is in its file.
  RawTensor raw(std::string_view name) const;
  /// The file to blame where a tensor is missing: the weights, or the index of them.
  const std::string& path() const { return path_; }

 private:
  void add(SafetensorsFile file);
  void check_index(const std::map<std::string, std::string>& shard_of) const;

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::map<std::string, size_t, std::less<>> file_of_;
};

}  // namespace margay
