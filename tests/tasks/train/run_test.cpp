#include "tasks/train/run.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/train/metrics.h"
#include "tasks/train/model_file.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;
namespace fs = std::filesystem;

namespace {

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::map<std::string, std::string> all_files(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[entry.path().string()] = content(entry.path().string());
  }
  return files;
}

/// Asks to stop after a step, or throws there.
struct StopAfter final : TrainObserver {
  int64_t stop = 0, crash = 0, now = 0;
  void on_step(const Trainer&, const Metrics& metrics) override {
    now = metrics.step;
    if (now == crash) throw std::runtime_error("crash");
  }
  bool stop_requested() override { return now == stop; }
};

/// What must not depend on interruptions.
std::vector<std::string> trace_of(const std::string& folder) {
  std::vector<std::string> trace;
  for (Metrics metrics : read_metrics(folder + "/metrics.jsonl")) {
    metrics.seconds = metrics.tokens_per_second = 0;
    metrics.peak_bytes = 0;
    trace.push_back(to_json(metrics));
  }
  return trace;
}

Config run_config() {
  Config config = test::tiny_config();
  config.model.dropout_residual = 0.1;
  config.train.eval_every = 6;
  config.train.checkpoint_every = 4;
  return config;
}

}  // namespace

TEST_CASE("run: leaves everything about itself in its folder") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("a/b/run");
  const Config config = run_config();
  TrainObserver nobody;
  CHECK(train_in_folder(config, {folder}, nobody) == RunEnd::finished);
  CHECK(content(folder + "/config.toml") == to_toml(config));
  CHECK(content(folder + "/report.svg").starts_with("<svg"));
  const auto metrics = read_metrics(folder + "/metrics.jsonl");
  REQUIRE(metrics.size() == 20);
  for (size_t i = 0; i < metrics.size(); ++i) {
    CHECK(metrics[i].step == static_cast<int64_t>(i) + 1);
    CHECK(metrics[i].accuracy.has_value() == (metrics[i].step % 6 == 0 || metrics[i].step == 20));
    CHECK(metrics[i].peak_bytes > 0);
  }
  const auto summary = nlohmann::json::parse(content(folder + "/summary.json"));
  CHECK(summary["steps"] == 20);
  CHECK(summary["loss"] == *metrics.back().test_loss);
  CHECK(summary["accuracy"] == *metrics.back().accuracy);
  CHECK(summary["tokens_per_second"] > 0);
  CHECK(summary["peak_rss_bytes"] > 1'000'000);
  CHECK(summary["seconds"] > 0);
  CHECK(load_state(folder + "/checkpoint").step == 20);
}

TEST_CASE("run: resuming after a stop or a crash gives the same bits as never stopping") {
  const test::Threads single(1);
  const test::TempDir dir;
  const Config config = run_config();
  const std::string straight = dir.file("straight"), broken = dir.file("broken");
  TrainObserver nobody;
  train_in_folder(config, {straight}, nobody);

  StopAfter stop, crash;
  stop.stop = 7;
  CHECK(train_in_folder(config, {broken}, stop) == RunEnd::stopped);
  CHECK(load_state(broken + "/checkpoint").step == 7);
  CHECK_FALSE(fs::exists(broken + "/summary.json"));
  crash.crash = 15;
  CHECK_THROWS(train_in_folder(config, {broken, true}, crash));
  CHECK(load_state(broken + "/checkpoint").step == 12);
  CHECK(train_in_folder(config, {broken, true}, nobody) == RunEnd::finished);

  CHECK(trace_of(broken) == trace_of(straight));
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "config.toml"}) {
    CHECK(content(broken + "/checkpoint/" + name) == content(straight + "/checkpoint/" + name));
  }
}

TEST_CASE("run: how often it saves changes no bit") {
  const test::Threads single(1);
  const test::TempDir dir;
  Config often = run_config(), rarely = run_config();
  often.train.checkpoint_every = 1;
  rarely.train.checkpoint_every = 0;
  TrainObserver nobody;
  train_in_folder(often, {dir.file("often")}, nobody);
  train_in_folder(rarely, {dir.file("rarely")}, nobody);
  CHECK(content(dir.file("often/checkpoint/model.safetensors")) ==
        content(dir.file("rarely/checkpoint/model.safetensors")));
}

TEST_CASE("run: one that is finished stays as it is") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("run");
  Config config = run_config();
  TrainObserver nobody;
  train_in_folder(config, {folder}, nobody);
  const auto before = all_files(folder);
  CHECK(train_in_folder(config, {folder, true}, nobody) == RunEnd::was_finished);
  CHECK(all_files(folder) == before);
  CHECK_THROWS_WITH_AS(train_in_folder(config, {folder}, nobody), doctest::Contains("--resume"), ConfigError);
  CHECK(all_files(folder) == before);

  fs::remove(folder + "/summary.json");  // killed just before the end
  CHECK(train_in_folder(config, {folder, true}, nobody) == RunEnd::finished);
  CHECK(nlohmann::json::parse(content(folder + "/summary.json"))["steps"] == 20);
  CHECK(read_metrics(folder + "/metrics.jsonl").size() == 20);

  config.train.steps = 25;  // and may go on for longer
  CHECK(train_in_folder(config, {folder, true}, nobody) == RunEnd::finished);
  CHECK(nlohmann::json::parse(content(folder + "/summary.json"))["steps"] == 25);
  CHECK(read_metrics(folder + "/metrics.jsonl").size() == 25);
}

TEST_CASE("run: one of landmark CAT goes on with fewer blocks for each token, but not with other blocks") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("run");
  Config config = run_config();
  config.model.mixer = {"lcat"};
  config.model.lcat.block_size = 2;
  config.model.lcat.top_k = 0;
  TrainObserver nobody;
  train_in_folder(config, {folder}, nobody);
  config.train.steps += 3;
  config.model.lcat.top_k = 1;
  CHECK(train_in_folder(config, {folder, true}, nobody) == RunEnd::finished);
  CHECK(load_checkpoint_config(folder + "/checkpoint").model.lcat.top_k == 1);
  config.model.lcat.block_size = 4;
  CHECK_THROWS_WITH_AS(train_in_folder(config, {folder, true}, nobody), doctest::Contains("model.lcat.block_size"),
                       ConfigError);
}

TEST_CASE("run: without a checkpoint, resuming starts afresh") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("run");
  const Config config = run_config();
  StopAfter crash;
  crash.crash = 3;
  CHECK_THROWS(train_in_folder(config, {folder}, crash));
  CHECK(read_metrics(folder + "/metrics.jsonl").size() == 3);
  TrainObserver nobody;
  CHECK(train_in_folder(config, {folder, true}, nobody) == RunEnd::finished);
  CHECK(read_metrics(folder + "/metrics.jsonl").size() == 20);
}

TEST_CASE("run: a long run has a line every so many steps, and can be stopped before the first") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("run");
  Config config = run_config();
  config.train.steps = 100'000;
  config.train.eval_every = config.train.checkpoint_every = 100'000;
  StopAfter stop;
  stop.stop = 3;
  CHECK(train_in_folder(config, {folder}, stop) == RunEnd::stopped);
  CHECK(read_metrics(folder + "/metrics.jsonl").empty());
  CHECK(content(folder + "/report.svg").starts_with("<svg"));
  stop.stop = 120;
  CHECK(train_in_folder(config, {folder, true}, stop) == RunEnd::stopped);
  const auto metrics = read_metrics(folder + "/metrics.jsonl");
  REQUIRE(metrics.size() == 2);
  CHECK(metrics[0].step == 50);
  CHECK(metrics[1].step == 100);
}

TEST_CASE("run: divergence keeps the last good checkpoint") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("run");
  Config config = run_config();
  config.train.checkpoint_every = 1;
  config.train.eval_every = 100;
  config.train.lr = 1e30;
  TrainObserver nobody;
  CHECK_THROWS_AS(train_in_folder(config, {folder}, nobody), DivergedError);
  const auto newest = CheckpointStore(folder).newest();
  if (newest) {
    for (const float weight : test::weights_of(load_model(*newest, config.model))) CHECK(std::isfinite(weight));
  }
  CHECK_FALSE(fs::exists(folder + "/summary.json"));
}

TEST_CASE("run: a configuration that does not fit leaves no folder behind") {
  const test::Threads single(1);
  const test::TempDir dir;
  Config config = run_config();
  config.model.vocab_size = 8;
  TrainObserver nobody;
  CHECK_THROWS_AS(train_in_folder(config, {dir.file("run")}, nobody), ConfigError);
  CHECK_FALSE(fs::exists(dir.file("run")));
  CHECK_THROWS_AS(train_in_folder(run_config(), {dir.write("file", "") + "/run"}, nobody), DataError);
}

TEST_CASE("run: two do not train in one folder at once") {
  const test::Threads single(1);
  const test::TempDir dir;
  const Config config = run_config();
  struct Second final : TrainObserver {
    std::string folder;
    bool refused = false;
    void on_step(const Trainer& trainer, const Metrics& metrics) override {
      TrainObserver nobody;
      if (metrics.step != 2) return;
      CHECK_THROWS_WITH_AS(train_in_folder(trainer.config(), {folder}, nobody), doctest::Contains("another process"),
                           ConfigError);
      refused = true;
    }
  } second;
  second.folder = dir.file("run");
  CHECK(train_in_folder(config, {second.folder}, second) == RunEnd::finished);
  CHECK(second.refused);
}
