#include "tasks/train/checkpoint.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <vector>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/mapped_file.h"
#include "tasks/train/folders.h"
#include "tasks/train/sha256.h"

namespace margay {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr size_t kKept = 2;
constexpr std::string_view kPrefix = "step-";
constexpr std::array<const char*, 3> kDigested = {"model.safetensors", "optimizer.safetensors", "config.toml"};

std::string digest_of(const std::string& checkpoint, const char* name) {
  return sha256(MappedFile((fs::path(checkpoint) / name).string()).bytes());
}

template <class T>
T member(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) throw DataError(fmt::format("\"{}\" must be a number", key));
  return found->get<T>();
}

const Json& object_of(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_object()) throw DataError(fmt::format("\"{}\" must be an object", key));
  return *found;
}

TrainState state_from(const Json& json) {
  if (!json.is_object()) throw DataError("must be a JSON object");
  if (member<int>(json, "format") != kFormat) throw DataError(fmt::format("\"format\" must be {}", kFormat));
  TrainState state;
  state.step = member<int64_t>(json, "step");
  state.epoch = member<int64_t>(json, "epoch");
  state.seed = member<int64_t>(object_of(json, "rng"), "seed");
  state.next_example = member<int64_t>(object_of(json, "data_position"), "example");
  state.tokens = member<int64_t>(json, "tokens");
  state.seconds = member<double>(json, "seconds");
  state.train_seconds = member<double>(json, "train_seconds");
  state.train_loss = member<double>(json, "train_loss");
  if (json.contains("test")) {
    const Json& test = object_of(json, "test");
    state.test = {member<int64_t>(test, "step"), member<double>(test, "loss"), member<double>(test, "accuracy")};
  }
  return state;
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_file_error(to, "cannot be written", errno);
}

/// The path of a folder or link that is gone when its scope ends, and at its start.
class Temporary {
 public:
  explicit Temporary(std::string path) : path_(std::move(path)) { remove(); }
  ~Temporary() { remove(); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  const std::string& path() const { return path_; }

 private:
  void remove() const {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string path_;
};

}  // namespace

void save_state(const std::string& checkpoint, const TrainState& state) {
  Json json{{"format", kFormat},
            {"step", state.step},
            {"epoch", state.epoch},
            {"rng", {{"seed", state.seed}, {"step", state.step}}},
            {"data_position", {{"epoch", state.epoch}, {"example", state.next_example}}},
            {"tokens", state.tokens},
            {"seconds", state.seconds},
            {"train_seconds", state.train_seconds},
            {"train_loss", state.train_loss}};
  if (state.test) {
    json["test"] = {{"step", state.test->step}, {"loss", state.test->loss}, {"accuracy", state.test->accuracy}};
  }
  for (const char* name : kDigested) json["digests"][name] = digest_of(checkpoint, name);
  write_file_atomically((fs::path(checkpoint) / "state.json").string(), json.dump(2) + '\n');
}

TrainState load_state(const std::string& checkpoint) {
  const std::string path = (fs::path(checkpoint) / "state.json").string();
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const Json json = Json::parse(bytes.begin(), bytes.end(), nullptr, false);
  TrainState state;
  try {
    state = state_from(json);
    const Json& digests = object_of(json, "digests");
    for (const char* name : kDigested) {
      const auto digest = digests.find(name);
      if (digest == digests.end() || *digest != digest_of(checkpoint, name)) {
        throw DataError(fmt::format("{} has another digest: it is damaged, or was changed", name));
      }
    }
  } catch (const DataError& error) {
    throw DataError(fmt::format("{}: {}", quoted_path(path), error.what()));
  }
  return state;
}

CheckpointStore::CheckpointStore(std::string run_folder)
    : run_folder_(std::move(run_folder)), checkpoints_((fs::path(run_folder_) / "checkpoints").string()) {}

std::string CheckpointStore::link() const { return (fs::path(run_folder_) / "checkpoint").string(); }

std::string CheckpointStore::folder_of(int64_t step) const {
  return (fs::path(checkpoints_) / fmt::format("{}{}", kPrefix, step)).string();
}

std::optional<std::string> CheckpointStore::newest() const {
  std::error_code error;
  if (fs::symlink_status(link(), error).type() == fs::file_type::not_found) return std::nullopt;
  return link();
}

void CheckpointStore::add(int64_t step, const std::function<void(const std::string& folder)>& write) {
  const std::string folder = folder_of(step), target = fmt::format("checkpoints/{}{}", kPrefix, step);
  std::error_code ignored;
  if (fs::read_symlink(link(), ignored) == target) return;
  make_folders(checkpoints_);
  {
    const Temporary unfinished(folder + ".tmp");
    make_folders(unfinished.path());
    write(unfinished.path());
    sync_folder(unfinished.path());
    fs::remove_all(folder, ignored);  // no link names it: it is left from a run that was killed just then
    rename_path(unfinished.path(), folder);
    sync_folder(checkpoints_);
  }
  const Temporary new_link(link() + ".tmp");
  if (::symlink(target.c_str(), new_link.path().c_str()) != 0) {
    throw_file_error(new_link.path(), "cannot be made", errno);
  }
  rename_path(new_link.path(), link());
  sync_folder(run_folder_);
  remove_old(step);
}

void CheckpointStore::remove_old(int64_t newest) const {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(checkpoints_, ignored)) {
    const std::string name = entry.path().filename().string();
    int64_t step = 0;
    const auto [end, error] =
        std::from_chars(name.data() + std::min(kPrefix.size(), name.size()), name.data() + name.size(), step);
    if (!name.starts_with(kPrefix) || error != std::errc()) continue;
    if (std::string_view(end, name.data() + name.size()) == ".tmp" || step > newest) {
      fs::remove_all(entry.path(), ignored);  // left from a run that was killed
    } else if (end == name.data() + name.size()) {
      steps.push_back(step);
    }
  }
  std::sort(steps.rbegin(), steps.rend());
  for (size_t i = kKept; i < steps.size(); ++i) fs::remove_all(folder_of(steps[i]), ignored);
}

}  // namespace margay
