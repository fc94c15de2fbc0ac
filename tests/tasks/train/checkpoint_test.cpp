#include "tasks/train/checkpoint.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "engine/error.h"
#include "engine/safetensors.h"
#include "tasks/train/model_file.h"
#include "tasks/train/trainer.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;
namespace fs = std::filesystem;

namespace {

/// Writes files as a checkpoint has them, with the step in each.
void write_files(const std::string& folder, int64_t step) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "config.toml"}) {
    std::ofstream(folder + '/' + name) << name << step;
  }
  save_state(folder, {.step = step});
}

void add(CheckpointStore& store, int64_t step) {
  store.add(step, [&](const std::string& folder) { write_files(folder, step); });
}

int64_t newest_step(const std::string& run) {
  const auto newest = CheckpointStore(run).newest();
  return newest ? load_state(*newest).step : -1;
}

/// Every name below a folder, links not followed.
size_t entries(const std::string& folder) {
  size_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) count += !entry.path().empty();
  return count;
}

/// No file of this process may become longer, while this lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("state: every value is read back") {
  const test::TempDir dir;
  write_files(dir.file(""), 1);
  TrainState state{.seed = -7,
                   .step = 123,
                   .epoch = 4,
                   .next_example = 56,
                   .tokens = int64_t{1} << 40,
                   .seconds = 0.1,
                   .train_seconds = 1.0 / 3,
                   .train_loss = 1e-9};
  for (const bool tested : {false, true}) {
    if (tested) state.test = {{100, 0.25, 0.75}};
    save_state(dir.file(""), state);
    const TrainState read = load_state(dir.file(""));
    CHECK(read.seed == state.seed);
    CHECK(read.step == state.step);
    CHECK(read.epoch == state.epoch);
    CHECK(read.next_example == state.next_example);
    CHECK(read.tokens == state.tokens);
    CHECK(read.seconds == state.seconds);
    CHECK(read.train_seconds == state.train_seconds);
    CHECK(read.train_loss == state.train_loss);
    REQUIRE(read.test.has_value() == tested);
    if (tested) CHECK((read.test->step == 100 && read.test->loss == 0.25 && read.test->accuracy == 0.75));
  }
}

TEST_CASE("state: a file that was changed or is damaged is found out") {
  const test::TempDir dir;
  const std::string folder = dir.file("");
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "config.toml"}) {
    write_files(folder, 1);
    std::ofstream(folder + name, std::ios::app) << "x";
    CHECK_THROWS_WITH_AS(load_state(folder), doctest::Contains(name), DataError);
    fs::remove(folder + name);
    CHECK_THROWS_WITH_AS(load_state(folder), doctest::Contains(name), DataError);
  }
  write_files(folder, 1);
  std::string json;
  std::getline(std::ifstream(folder + "state.json"), json, '\0');
  for (size_t length = 0; length + 2 < json.size(); length += 7) {
    std::ofstream(folder + "state.json") << json.substr(0, length);
    CHECK_THROWS_AS(load_state(folder), DataError);
  }
  for (const char* text : {"[]", "3", "{}", "{\"format\": 2}", "{\"format\": 1, \"step\": \"one\"}"}) {
    std::ofstream(folder + "state.json") << text;
    CHECK_THROWS_WITH_AS(load_state(folder), doctest::Contains("state.json"), DataError);
  }
}

TEST_CASE("checkpoints: the link names the newest, and one more is kept") {
  const test::TempDir dir;
  CheckpointStore store(dir.file(""));
  CHECK_FALSE(store.newest());
  for (const int64_t step : {5, 10, 100, 110}) {
    add(store, step);
    CHECK(newest_step(dir.file("")) == step);
    CHECK(fs::read_symlink(dir.file("checkpoint")) == "checkpoints/step-" + std::to_string(step));
  }
  CHECK(fs::exists(dir.file("checkpoints/step-100")));
  CHECK_FALSE(fs::exists(dir.file("checkpoints/step-10")));
  const size_t before = entries(dir.file(""));
  store.add(110, [](const std::string&) { FAIL("the newest is not written again"); });
  CHECK(entries(dir.file("")) == before);
}

TEST_CASE("checkpoints: a kill at any stage leaves a whole one, and the next goes on") {
  // What lies there after each stage of adding step 20.
  enum Stage { kHalfWritten, kWritten, kInPlace, kLinkMade, kLinked, kStages };
  for (int stage = kHalfWritten; stage < kStages; ++stage) {
    CAPTURE(stage);
    const test::TempDir dir;
    CheckpointStore store(dir.file(""));
    add(store, 5);
    add(store, 10);
    const std::string place = dir.file(stage < kInPlace ? "checkpoints/step-20.tmp" : "checkpoints/step-20");
    fs::create_directory(place);
    if (stage == kHalfWritten) {
      std::ofstream(place + "/model.safetensors") << "half";
      std::ofstream(place + "/.margay-1-0.tmp") << "half";
    } else {
      write_files(place, 20);
    }
    if (stage == kLinkMade) fs::create_symlink("checkpoints/step-20", dir.file("checkpoint.tmp"));
    if (stage == kLinked) {
      fs::remove(dir.file("checkpoint"));
      fs::create_symlink("checkpoints/step-20", dir.file("checkpoint"));
    }
    const int64_t newest = stage == kLinked ? 20 : 10;
    CHECK(newest_step(dir.file("")) == newest);
    for (const int64_t step : {newest + 5, newest + 10}) {  // over 20 again, where it is not the newest
      add(store, step);
      CHECK(newest_step(dir.file("")) == step);
    }
    CHECK(entries(dir.file("")) == 2 + 2 + 2 * 4);  // the link, the folder, two checkpoints of four files
  }
}

TEST_CASE("checkpoints: an error keeps the old one and leaves nothing else") {
  const test::TempDir dir;
  CheckpointStore store(dir.file(""));
  const auto fail = [](const std::string& folder) {
    write_files(folder, 20);
    throw ResourceError("full");
  };
  CHECK_THROWS_AS(store.add(20, fail), ResourceError);
  CHECK_FALSE(store.newest());
  add(store, 10);
  const size_t before = entries(dir.file(""));
  CHECK_THROWS_AS(store.add(20, fail), ResourceError);
  CHECK(newest_step(dir.file("")) == 10);
  CHECK(entries(dir.file("")) == before);
}

TEST_CASE("checkpoints: a full disk, at every file") {
  const test::Threads single(1);
  const test::TempDir dir;
  Trainer trainer(test::tiny_config());
  CheckpointStore store(dir.file(""));
  const auto save = [&](const std::string& folder) { trainer.save(folder); };
  store.add(0, save);
  const auto bytes = [&](const char* name) { return fs::file_size(fs::path(dir.file("checkpoint")) / name); };
  trainer.step();
  const size_t before = entries(dir.file(""));
  for (const rlim_t limit : {rlim_t{0}, rlim_t{100}, rlim_t(bytes("state.json") - 1), rlim_t(bytes("config.toml") - 1),
                             rlim_t(bytes("model.safetensors") - 1), rlim_t(bytes("optimizer.safetensors") - 1)}) {
    CAPTURE(limit);
    {
      const FileSizeLimit full(limit);
      CHECK_THROWS_AS(store.add(1, save), ResourceError);
    }
    CHECK(newest_step(dir.file("")) == 0);
    CHECK(entries(dir.file("")) == before);
  }
  store.add(1, save);
  CHECK(newest_step(dir.file("")) == 1);
}

TEST_CASE("model file: any order of tensors; every fault by name") {
  const test::TempDir dir;
  const std::string folder = dir.file("checkpoint"), file = folder + "/model.safetensors";
  const Config config = test::tiny_config();
  const LanguageModel model(config.model, 7);
  save_model(folder, config, model);
  CHECK(find_checkpoint(folder) == folder);
  CHECK(find_checkpoint(dir.file("")) == dir.file("checkpoint"));
  CHECK_THROWS_AS(find_checkpoint(dir.file("nothing")), DataError);
  CHECK(to_toml(load_checkpoint_config(folder)) == to_toml(config));
  CHECK(test::weights_of(load_model(folder, config.model)) == test::weights_of(model));

  std::vector<NamedTensor> tensors;
  for (const Parameter& parameter : model.parameters())
    tensors.insert(tensors.begin(), {parameter.name, parameter.value.detach()});
  const auto with = [&](size_t index, const NamedTensor& tensor) {
    std::vector<NamedTensor> changed = tensors;
    changed[index] = tensor;
    save_safetensors(file, changed);
  };
  with(0, {tensors[0].name, tensors[0].tensor.to(DType::f64)});
  CHECK(test::weights_of(load_model(folder, config.model)) == test::weights_of(model));

  const auto message = doctest::Contains(tensors[0].name.c_str());
  with(0, {tensors[0].name, zeros({3})});
  CHECK_THROWS_WITH_AS(load_model(folder, config.model), message, DataError);
  with(0, {tensors[0].name, zeros(tensors[0].tensor.shape(), DType::i32)});
  CHECK_THROWS_WITH_AS(load_model(folder, config.model), message, DataError);
  with(0, {"another", zeros({3})});
  CHECK_THROWS_WITH_AS(load_model(folder, config.model), message, DataError);
  tensors.push_back({"surplus", zeros({3})});
  save_safetensors(file, tensors);
  CHECK_THROWS_WITH_AS(load_model(folder, config.model), doctest::Contains("surplus"), DataError);
}
