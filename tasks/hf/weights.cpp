#include "tasks/hf/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/names.h"
#include "tasks/hf/json_object.h"

namespace margay {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostIndexBytes = size_t{1} << 26;
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// The first file of the folder that PyTorch would have pickled; empty if there is none.
std::string pickle_in(const std::string& folder) {
  constexpr std::array<std::string_view, 5> kEndings{".bin", ".pt", ".pth", ".ckpt", ".pkl"};
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const bool pickle = std::any_of(kEndings.begin(), kEndings.end(), [&](auto end) { return name.ends_with(end); });
    if (pickle) found.push_back(name);
  }
  return found.empty() ? "" : *std::min_element(found.begin(), found.end());
}

[[noreturn]] void fail_without_weights(const std::string& folder) {
  if (!is_there(folder)) throw DataError(fmt::format("{}: does not exist", quoted_path(folder)));
  const std::string pickle = pickle_in(folder);
  if (pickle.empty()) throw DataError(fmt::format("{}: has neither {} nor {}", quoted_path(folder), kWeights, kIndex));
  throw DataError(fmt::format(
      "{}: is a pickle file, which can run any code when it is read, and is not opened; where its source is "
      "trusted, transformers can convert it: AutoModelForCausalLM.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)",
      quoted_path((fs::path(folder) / pickle).string())));
}

/// Throws unless `name` is that of a file in the index's own folder.
void require_plain_name(const std::string& index, const std::string& tensor, const std::string& name) {
  const bool plain = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                     name.find('\\') == std::string::npos && name.ends_with(".safetensors");
  if (!plain)
    throw DataError(fmt::format("{}: the shard of tensor {} must be a .safetensors file of the same folder, got {}",
                                quoted_path(index), margay::quoted(tensor), margay::quoted(name)));
}

}  // namespace

HfWeights HfWeights::open(const std::string& folder) {
  HfWeights weights;
  const fs::path single = fs::path(folder) / kWeights, index = fs::path(folder) / kIndex;
  weights.path_ = is_there(single) ? single.string() : index.string();
  if (is_there(single)) {
    weights.add(SafetensorsFile::open(single.string()));
    return weights;
  }
  if (!is_there(index)) fail_without_weights(folder);
  const JsonObject json = JsonObject::load(index.string(), kMostIndexBytes), map = json.object("weight_map");
  std::map<std::string, std::string> shard_of;
  std::vector<std::string> shards;
  for (const std::string& tensor : map.keys()) {
    const std::string shard = map.text(tensor);
    require_plain_name(index.string(), tensor, shard);
    shard_of.emplace(tensor, shard);
    shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  for (const std::string& shard : shards) weights.add(SafetensorsFile::open((fs::path(folder) / shard).string()));
  weights.check_index(shard_of);
  if (json.has("metadata") && json.object("metadata").has("total_size")) {
    int64_t bytes = 0;
    for (const std::string& name : weights.names_) bytes += weights.file_of(name).info(name).bytes;
    const JsonObject metadata = json.object("metadata");
    if (metadata.integer("total_size", 0, int64_t{1} << 60) != bytes)
      metadata.fail("total_size", fmt::format("the {} bytes of all tensors", bytes));
  }
  return weights;
}

void HfWeights::add(SafetensorsFile file) {
  for (const std::string& name : file.names()) {
    const auto [found, added] = file_of_.emplace(name, files_.size());
    if (!added)
      throw DataError(fmt::format("{}: holds tensor {}, as {} does", quoted_path(file.path()), margay::quoted(name),
                                  quoted_path(files_[found->second].path())));
    names_.push_back(name);
  }
  files_.push_back(std::move(file));
}

void HfWeights::check_index(const std::map<std::string, std::string>& shard_of) const {
  for (const auto& [tensor, shard] : shard_of) {
    const auto found = file_of_.find(tensor);
    if (found == file_of_.end() || fs::path(files_[found->second].path()).filename() != shard)
      throw DataError(fmt::format("{}: tensor {} should be in {}, which does not hold it", quoted_path(path_),
                                  margay::quoted(tensor), margay::quoted(shard)));
  }
  for (const std::string& name : names_) {
    if (!shard_of.contains(name))
      throw DataError(fmt::format("{}: does not list tensor {} of {}", quoted_path(path_), margay::quoted(name),
                                  quoted_path(file_of(name).path())));
  }
}

const SafetensorsFile& HfWeights::file_of(std::string_view name) const { return files_[file_of_.find(name)->second]; }

RawTensor HfWeights::raw(std::string_view name) const {
  const SafetensorsFile& file = file_of(name);
  const SafetensorsFile::Info info = file.info(name);
  return {std::string(name), info.dtype_name, info.shape, file.bytes(name)};
}

}  // namespace margay
