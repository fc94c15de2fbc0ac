#include <doctest/doctest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tasks/train/checkpoint.h"
#include "tasks/train/metrics.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using namespace margay;
using margay::test::Command;
using margay::test::Ended;
using margay::test::TempDir;
namespace fs = std::filesystem;

namespace {

/// A run of about a second, which saves after every other step.
std::vector<std::string> training(const std::string& folder, int64_t steps) {
  return {"train",
          "mqar-64-cat",
          "--out",
          folder,
          "--resume",
          "--threads",
          "1",
          "model.d_model=16",
          "model.vocab_size=64",
          "model.max_seq_len=16",
          "model.dropout_residual=0.1",
          "task.vocab_size=64",
          "task.seq_len=16",
          "task.num_kv_pairs=2",
          "task.test_examples=20",
          "train.batch_size=8",
          "train.eval_every=7",
          "train.checkpoint_every=2",
          "train.steps=" + std::to_string(steps)};
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

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

void check_same_run(const std::string& a, const std::string& b) {
  CHECK(trace_of(a) == trace_of(b));
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    CHECK(content(a + "/checkpoint/" + name) == content(b + "/checkpoint/" + name));
  }
}

}  // namespace

TEST_CASE("command: killed at random instants, a run goes on to the same bits") {
  constexpr int64_t steps = 100;
  const TempDir dir;
  const std::string straight = dir.file("straight"), killed = dir.file("killed");
  REQUIRE(test::run_margay(training(straight, steps)).code == 0);
  std::mt19937 random(1);
  for (int kill = 0; kill < 8; ++kill) {
    Command command(training(killed, steps));
    command.wait_for_output("parameters");
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 40));
    command.signal(SIGKILL);
    command.wait();
    if (const auto newest = CheckpointStore(killed).newest()) CHECK_NOTHROW(load_state(*newest));
  }
  const Ended ended = test::run_margay(training(killed, steps));
  CAPTURE(ended.error);
  CHECK(ended.code == 0);
  check_same_run(straight, killed);
  CHECK(std::distance(fs::directory_iterator(killed + "/checkpoints"), {}) == 2);
}

TEST_CASE("command: SIGINT and SIGTERM save, and exit 130 and 143") {
  constexpr int64_t steps = 2000;
  const TempDir dir;
  const std::string folder = dir.file("run");
  for (const int signal : {SIGINT, SIGTERM}) {
    Command command(training(folder, steps));
    REQUIRE(command.wait_for_output("step "));
    command.signal(signal);
    const Ended ended = command.wait();
    CHECK(ended.code == 128 + signal);
    CHECK(ended.error.empty());
    CHECK(ended.out.find("--resume") != std::string::npos);
    const int64_t saved = load_state(folder + "/checkpoint").step;
    CHECK(read_metrics(folder + "/metrics.jsonl").back().step == saved);
    CHECK(ended.out.find("stopped at step " + std::to_string(saved).substr(0, 1)) != std::string::npos);
  }
}

TEST_CASE("command: a second signal ends it at once") {
  const TempDir dir;
  std::vector<std::string> slow = training(dir.file("run"), 1000);
  slow.push_back("task.test_examples=100000000");  // the first test takes minutes
  Command command(slow);
  REQUIRE(command.wait_for_output("parameters"));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  command.signal(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  command.signal(SIGINT);
  CHECK(command.wait().code == 130);
  CHECK_FALSE(fs::exists(dir.file("run/summary.json")));
}
