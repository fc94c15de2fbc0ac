#include <doctest/doctest.h>

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "engine/npy.h"
#include "engine/safetensors.h"
#include "engine/tensor.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using namespace margay;
using margay::test::Command;
using margay::test::Ended;
using margay::test::TempDir;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A model of 3,000 parameters on recall.
const Words kTiny = {"model.d_model=16",   "model.n_heads=2", "model.vocab_size=64", "model.max_seq_len=16",
                     "task.vocab_size=64", "task.seq_len=16", "task.num_kv_pairs=2", "task.test_examples=20",
                     "train.batch_size=8", "train.steps=10",  "train.eval_every=5",  "train.checkpoint_every=3"};

/// With one thread: the quickest for models this small.
Ended run(const Words& words, const Command::Options& options = {}) {
  return test::run_margay(words + Words{"--threads", "1"}, options);
}

Ended train(const TempDir& dir, const Words& words, const Command::Options& options = {}) {
  return run(Words{"train", "mqar-64-cat", "--out", dir.file("run")} + kTiny + words, options);
}

/// One line on standard error that names the verb, and the exit code.
void check_error(const Ended& ended, int code, const std::string& message) {
  CAPTURE(ended.error);
  CHECK(ended.code == code);
  CHECK(std::count(ended.error.begin(), ended.error.end(), '\n') == 1);
  CHECK(ended.error.starts_with("margay "));
  CHECK(ended.error.find(message) != std::string::npos);
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

size_t count_files(const std::string& folder) {
  const fs::recursive_directory_iterator begin(folder);
  return static_cast<size_t>(std::distance(fs::begin(begin), fs::end(begin)));
}

/// A checkpoint with untrained weights.
std::string fresh_checkpoint(const TempDir& dir, const Words& words = {}) {
  const std::string folder = dir.file("fresh");
  const Ended ended = run(Words{"init", "mqar-64-cat", "--out", folder} + kTiny + words);
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  return folder;
}

std::string ids_file(const TempDir& dir, const char* name, const std::vector<int32_t>& ids, const Shape& shape) {
  save_npy(dir.file(name), from_values(ids, shape));
  return dir.file(name);
}

}  // namespace

TEST_CASE("command: help, version and lists") {
  CHECK(test::run_margay({"--help"}).out.find("train a model") != std::string::npos);
  CHECK(test::run_margay({"--version"}).out.starts_with("margay "));
  for (const char* verb :
       {"train", "eval", "init", "gen", "forward", "backward", "sample", "plot", "list", "info", "graph", "bench"}) {
    CAPTURE(verb);
    const Ended ended = test::run_margay({verb, "--help"});
    CHECK(ended.code == 0);
    CHECK(ended.error.empty());
    CHECK(ended.out.find("Usage: margay " + std::string(verb)) != std::string::npos);
    CHECK(ended.out.find("Examples\n") != std::string::npos);
    CHECK(test::run_margay({"help", verb}).out == ended.out);
    CHECK(test::run_margay({verb, "x", "-h"}).out == ended.out);
  }
  for (const char* kind : {"models", "tasks", "ops", "presets", "devices"}) {
    CAPTURE(kind);
    const Json list = Json::parse(test::run_margay({"list", kind, "--json"}).out);
    REQUIRE(list.is_array());
    REQUIRE(!list.empty());
    const std::string text = test::run_margay({"list", kind}).out;
    for (const Json& item : list) CHECK(text.find(item["name"].get<std::string>()) != std::string::npos);
  }
}

TEST_CASE("command: wrong usage is exit 2, with one line and the nearest name") {
  const auto check = [](const Words& words, const std::string& message) {
    CAPTURE(words[0]);
    check_error(test::run_margay(words), 2, message);
  };
  const Ended none = test::run_margay({});
  CHECK(none.code == 2);
  CHECK(none.error.find("--help") != std::string::npos);
  const Ended verb = test::run_margay({"trian"});
  CHECK(verb.code == 2);
  CHECK(verb.error.find("\"train\"") != std::string::npos);
  check({"train"}, "PRESET|CONFIG.toml is missing");
  check({"train", "mqar-64-ct"}, "\"mqar-64-cat\"");
  check({"train", "mqar-64-cat", "--treads", "2"}, "--threads");
  check({"train", "mqar-64-cat", "modle.d_model=3"}, "\"model.d_model\"");
  check({"train", "mqar-64-cat", "model.d_model=wide"}, "model.d_model must be");
  check({"train", "mqar-64-cat", "model.d_model"}, "key=value");
  check({"train", "mqar-64-cat", "model.mixer=cta"}, "cat");
  check({"train", "mqar-64-cat", "model.vocab_size=8"}, "model.vocab_size");
  check({"train", "mqar-64-cat", "task.train_examples=0", "train.steps=0"}, "train.steps");
  check({"train", "mqar-64-cat", "--threads", "0"}, "--threads");
  check({"train", "mqar-64-cat", "--threads", "two"}, "--threads");
  check({"train", "mqar-64-cat", "--seed", "1.5"}, "--seed");
  check({"train", "mqar-64-cat", "--out"}, "--out");
  check({"train", "mqar-64-cat", "--device", "tpu"}, "device");
  check({"init", "mqar-64-cat"}, "--out CHECKPOINT is missing");
  check({"gen", "mqra", "--count", "1", "--out", "x"}, "\"mqar\"");
  check({"gen", "mqar", "train.lr=1", "--count", "1", "--out", "x"}, "task.");
  check({"gen", "mqar", "task.sed=1", "--count", "1", "--out", "x"}, "\"task.seed\"");
  check({"gen", "mqar", "--count", "0", "--out", "x"}, "--count");
  check({"list", "model"}, "\"models\"");
  check({"list", "models", "tasks"}, "one argument too many");
  check({"bench", "train/cta-L64"}, "\"train/cat-L64\"");
  check({"plot", "--out", "x.svg"}, "RUN is missing");
}

TEST_CASE("command: missing files and folders that cannot be written are exit 3") {
  const TempDir dir;
  const std::string file = dir.write("file", "text"), nothing = dir.file("nothing");
  check_error(test::run_margay({"train", nothing + ".toml"}), 3, "nothing.toml");
  check_error(test::run_margay({"eval", nothing}), 3, "does not exist");
  check_error(test::run_margay({"eval", dir.file("")}), 3, "neither a run nor a checkpoint");
  check_error(test::run_margay({"plot", nothing, "--out", dir.file("x.svg")}), 3, "metrics.jsonl");
  check_error(test::run_margay({"gen", "mqar", "--count", "1", "--out", file + "/x"}), 3, "file/x");
  check_error(run(Words{"init", "mqar-64-cat", "--out", file + "/x"} + kTiny), 3, "file/x");
  check_error(run(Words{"train", "mqar-64-cat", "--out", file + "/x"} + kTiny), 3, "file/x");
  check_error(test::run_margay({"train", "lm-kjv-cat", "task.path=" + nothing, "--out", dir.file("lm")}), 3, "nothing");
  CHECK_FALSE(fs::exists(dir.file("lm")));
  check_error(test::run_margay({"train", "lm-kjv-cat", "task.path=" + dir.write("empty", ""), "--out", dir.file("lm")}),
              3, "empty");
}

TEST_CASE("command: gen writes the same examples for any number of threads, the first ones of more") {
  const TempDir dir;
  const auto generate = [&](const std::string& name, const Words& words) {
    const Ended ended = test::run_margay(Words{"gen", "mqar", "--out", dir.file(name)} + words);
    CAPTURE(ended.error);
    REQUIRE(ended.code == 0);
    return std::pair(content(dir.file(name) + "/inputs.npy"), content(dir.file(name) + "/targets.npy"));
  };
  const auto one = generate("one", {"--count", "50", "--seed", "7", "--threads", "1"});
  CHECK(one == generate("two", {"--count", "50", "--seed", "7", "--threads", "5"}));
  CHECK(one != generate("other", {"--count", "50", "--seed", "4294967303"}));  // 7 + 2^32
  generate("more", {"--count", "80", "--seed", "7"});
  const Tensor inputs = load_npy(dir.file("one/inputs.npy")), more = load_npy(dir.file("more/inputs.npy"));
  CHECK(describe(inputs) == "i32[50,64]");
  CHECK(describe(load_npy(dir.file("one/targets.npy"))) == "i32[50,64]");
  const std::vector<int32_t> few = inputs.to_vector<int32_t>(), many = more.to_vector<int32_t>();
  CHECK(std::equal(few.begin(), few.end(), many.begin()));
  generate("test", {"--count", "50", "--seed", "7", "--split", "test"});
  CHECK(content(dir.file("test/inputs.npy")) != one.first);
}

TEST_CASE("command: init takes [model] alone, and the same seed gives the same bytes") {
  const TempDir dir;
  const std::string config =
      dir.write("config.toml", "[model]\nd_model = 16\nvocab_size = 29\nmixer = \"attention\"\n");
  const auto init = [&](const std::string& name, const Words& words) {
    const Ended ended = test::run_margay(Words{"init", config, "--out", dir.file(name)} + words);
    CAPTURE(ended.error);
    REQUIRE(ended.code == 0);
    return content(dir.file(name) + "/model.safetensors");
  };
  const std::string a = init("a", {});
  CHECK(a == init("b", {"--threads", "3"}));
  CHECK(a != init("c", {"--seed", "5"}));
  CHECK(init("c", {"--seed", "5"}) == init("d", {"train.seed=5"}));
  CHECK(SafetensorsFile::open(dir.file("a/model.safetensors")).info("embed.weight").shape == Shape{29, 16});
  CHECK(test::run_margay({"info", dir.file("a")}).code == 0);
}

TEST_CASE("command: forward and backward agree with each other and with their inputs' shape") {
  const TempDir dir;
  const std::string model = fresh_checkpoint(dir);
  std::vector<int32_t> ids, labels;
  for (int32_t i = 0; i < 3 * 16; ++i) {
    ids.push_back(i * 7 % 64);
    labels.push_back(i % 3 == 0 ? i % 64 : -100);
  }
  const std::string inputs = ids_file(dir, "inputs.npy", ids, {3, 16}),
                    targets = ids_file(dir, "t.npy", labels, {3, 16});
  REQUIRE(run({"forward", model, "--inputs", inputs, "--out", dir.file("logits.npy")}).code == 0);
  const Tensor logits = load_npy(dir.file("logits.npy"));
  CHECK(describe(logits) == "f32[3,16,64]");
  const Ended backward =
      run({"backward", model, "--inputs", inputs, "--targets", targets, "--out", dir.file("grads.safetensors")});
  REQUIRE(backward.code == 0);
  REQUIRE(backward.out.starts_with("loss "));
  CHECK(backward.out.size() > 12);  // at least 7 digits

  const std::vector<float> values = logits.to_vector<float>();
  double loss = 0, count = 0;
  for (size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] < 0) continue;
    double sum = 0;
    for (size_t v = 0; v < 64; ++v) sum += std::exp(static_cast<double>(values[row * 64 + v]));
    loss += std::log(sum) - static_cast<double>(values[row * 64 + static_cast<size_t>(labels[row])]);
    ++count;
  }
  CHECK(std::stod(backward.out.substr(5)) == doctest::Approx(loss / count).epsilon(1e-6));
  const SafetensorsFile parameters = SafetensorsFile::open(model + "/model.safetensors");
  const SafetensorsFile gradients = SafetensorsFile::open(dir.file("grads.safetensors"));
  CHECK(gradients.names().size() == parameters.names().size());
  for (const std::string& name : parameters.names()) {
    CHECK(gradients.info(name).shape == parameters.info(name).shape);
    CHECK(gradients.info(name).dtype_name == "F32");
  }
}

TEST_CASE("command: bad token files and damaged checkpoints are exit 3, and leave no output") {
  const TempDir dir;
  const std::string model = fresh_checkpoint(dir, {"model.position=learned"}), out = dir.file("out.npy");
  const auto forward = [&](const std::string& inputs) {
    return run({"forward", model, "--inputs", inputs, "--out", out});
  };
  check_error(forward(dir.file("none.npy")), 3, "none.npy");
  check_error(forward(ids_file(dir, "big.npy", {1, 64}, {1, 2})), 3, "64");
  check_error(forward(ids_file(dir, "negative.npy", {1, -1}, {1, 2})), 3, "-1");
  check_error(forward(ids_file(dir, "flat.npy", {1, 2}, {2})), 3, "int32 [N,L]");
  save_npy(dir.file("float.npy"), zeros({1, 2}));
  check_error(forward(dir.file("float.npy")), 3, "f32[1,2]");
  check_error(forward(dir.write("short.npy", content(ids_file(dir, "a.npy", {1, 2}, {1, 2})).substr(0, 130))), 3,
              "short.npy");
  check_error(forward(ids_file(dir, "long.npy", std::vector<int32_t>(17, 1), {1, 17})), 2, "");  // of 16 positions
  const std::string inputs = ids_file(dir, "ok.npy", {1, 2}, {1, 2});
  const auto backward = [&](const std::string& targets) {
    return run({"backward", model, "--inputs", inputs, "--targets", targets, "--out", out});
  };
  check_error(backward(ids_file(dir, "wide.npy", {1, 2, 3}, {1, 3})), 3, "wide.npy");
  check_error(backward(ids_file(dir, "ignored.npy", {-100, -100}, {1, 2})), 3, "ignored.npy");
  check_error(backward(ids_file(dir, "bad.npy", {-100, -99}, {1, 2})), 3, "-99");
  CHECK(forward(inputs).code == 0);
  fs::remove(out);

  const std::string file = model + "/model.safetensors", bytes = content(file);
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, bytes.size() - 1}) {
    CAPTURE(length);
    std::ofstream(file, std::ios::binary) << bytes.substr(0, length);
    check_error(forward(inputs), 3, "model.safetensors");
  }
  std::ofstream(file, std::ios::binary) << bytes;
  std::ofstream(model + "/config.toml", std::ios::app) << "nonsense";
  check_error(forward(inputs), 2, "config.toml");
  fs::remove(model + "/config.toml");
  check_error(forward(inputs), 3, "config.toml");
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("command: train leaves a run that eval, plot and info read") {
  const TempDir dir;
  const Ended ended = train(dir, {});
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  CHECK(ended.error.empty());
  CHECK(ended.out.find("step 10/10") != std::string::npos);
  CHECK(ended.out.find('\x1b') == std::string::npos);
  const Json summary = Json::parse(content(dir.file("run/summary.json")));
  CHECK(summary["steps"] == 10);
  const Ended eval = run({"eval", dir.file("run"), "--json"});
  REQUIRE(eval.code == 0);
  const Json result = Json::parse(eval.out);
  CHECK(result["loss"] == summary["loss"]);
  CHECK(result["accuracy"] == summary["accuracy"]);
  CHECK(result["examples"] == 20);
  CHECK(result["tokens_per_second"] > 0);
  CHECK(run({"eval", dir.file("run/checkpoint"), "task.test_examples=5"}).out.find("examples 5") != std::string::npos);
  CHECK(test::run_margay({"plot", dir.file("run"), dir.file("run"), "--out", dir.file("two.svg"), "--loss", "log"})
            .code == 0);
  CHECK(content(dir.file("two.svg")).find("run") != std::string::npos);
  const Json info = Json::parse(run({"info", dir.file("run"), "--json"}).out);
  CHECK(info["parameters"] == summary["parameters"]);
  CHECK(info["step"]["memory_bytes"]["total"] > info["step"]["memory_bytes"]["parameters"]);
  CHECK(train(dir, {"--resume", "--quiet"}).code == 0);
  check_error(train(dir, {}), 2, "--resume");
  check_error(train(dir, {"--resume", "train.lr=0.5"}), 2, "train.lr");
}

TEST_CASE("command: --quiet says nothing, and runs get folders of their own") {
  const TempDir dir;
  const Words words = Words{"train", "mqar-64-cat", "--quiet"} + kTiny;
  const Command::Options here{.folder = dir.file("")};
  for (const char* folder : {"runs/mqar-64-cat", "runs/mqar-64-cat-2", "runs/mqar-64-cat-3"}) {
    const Ended ended = run(words, here);
    CHECK(ended.code == 0);
    CHECK(ended.out.empty());
    CHECK(ended.error.empty());
    CHECK(fs::exists(dir.file(folder) + "/summary.json"));
  }
  CHECK(run(words + Words{"--resume"}, here).code == 0);  // the last one, which is finished
  CHECK_FALSE(fs::exists(dir.file("runs/mqar-64-cat-4")));
  const std::string toml = dir.write("own.toml", content(dir.file("runs/mqar-64-cat/config.toml")));
  CHECK(run({"train", toml}, here).code == 0);
  CHECK(content(dir.file("runs/own/checkpoint/model.safetensors")) ==
        content(dir.file("runs/mqar-64-cat/checkpoint/model.safetensors")));
}

TEST_CASE("command: train writes a profile, and says at once where it cannot") {
  const TempDir dir;
  const std::string file = dir.file("trace.json");
  const Ended ended = train(dir, {"--profile", file, "--profile-steps", "2"});
  REQUIRE(ended.code == 0);
  for (const char* part : {"2 steps", "selected_attention, backward", "of limit", "memory at the peak"})
    CHECK_MESSAGE(ended.out.find(part) != std::string::npos, part);
  std::ifstream stream(file);
  const Json trace = Json::parse(stream);
  CHECK(trace["traceEvents"].size() > 20);

  const TempDir other;
  check_error(train(other, {"--profile", other.file("no/such/trace.json")}), 3, "trace.json");
  CHECK(!fs::exists(other.file("run")));
}

TEST_CASE("command: divergence is exit 4 and keeps the last checkpoint") {
  const TempDir dir;
  check_error(train(dir, {"train.lr=1e30", "train.checkpoint_every=1", "train.eval_every=100"}), 4, "at step");
  CHECK_FALSE(fs::exists(dir.file("run/summary.json")));
  if (fs::exists(dir.file("run/checkpoint"))) CHECK(run({"eval", dir.file("run")}).code == 0);
  const TempDir other;
  check_error(train(other, {"train.lr=1e30", "--anomaly"}), 4, "at step");
}

TEST_CASE("command: a full disk is exit 5, with the old checkpoint intact and no temporary file") {
  const TempDir dir;
  REQUIRE(train(dir, {"train.steps=3"}).code == 0);
  const std::string model = content(dir.file("run/checkpoint/model.safetensors"));
  const size_t files = count_files(dir.file("run"));
  const Ended full =
      train(dir, {"train.steps=9", "--resume"}, {.file_size_limit = static_cast<long>(model.size()) - 1});
  check_error(full, 5, "cannot be written");
  CHECK(content(dir.file("run/checkpoint/model.safetensors")) == model);
  CHECK(count_files(dir.file("run")) == files);
  CHECK(train(dir, {"train.steps=9", "--resume"}).code == 0);

  const std::string inputs = ids_file(dir, "inputs.npy", {1, 2}, {1, 2});
  check_error(run({"forward", dir.file("run"), "--inputs", inputs, "--out", "/dev/full"}), 5, "/dev/full");
  check_error(
      test::run_margay({"gen", "mqar", "--count", "1000", "--out", dir.file("data")}, {.file_size_limit = 1000}), 5,
      "cannot be written");
  CHECK(count_files(dir.file("data")) == 0);
}

TEST_CASE("command: standard output that is closed, broken or full") {
  const TempDir dir;
  CHECK(test::run_margay({"list", "ops"}, {.close_output = true}).code == 0);
  CHECK(test::run_margay({"list", "ops"}, {.break_pipe = true}).code == 0);
  CHECK(train(dir, {}, {.close_output = true}).code == 0);
  CHECK(content(dir.file("run/metrics.jsonl")).starts_with("{\"step\":1,"));
  const TempDir other;
  CHECK(train(other, {}, {.break_pipe = true}).code == 0);
  CHECK(fs::exists(other.file("run/summary.json")));
}

TEST_CASE("command: graph, bench and info print what they are asked for") {
  const Ended graph = test::run_margay(Words{"graph", "mqar-64-cat"} + kTiny);
  CHECK(graph.out.starts_with("digraph"));
  CHECK(graph.out.find("linear_cross_entropy") != std::string::npos);
  const Ended bench =
      run({"bench", "op/adamw_step", "train/cat-L64", "--json", "--steps", "1", "--warmup", "0", "--seconds", "0"});
  const Json rows = Json::parse(bench.out);
  REQUIRE(rows.size() == 2);
  CHECK(rows[0]["name"] == "train/cat-L64");
  CHECK(rows[0]["tokens_per_second"] > 0);
  CHECK(rows[0]["peak_rss_bytes"] > 1'000'000);
  for (const Json& row : rows) CHECK(row["median_ms"] >= row["min_ms"]);
  CHECK_FALSE(rows[0].contains("of_limit"));
  CHECK(rows[1]["of_limit"] > 0);
  const std::string names = test::run_margay({"bench", "--list"}).out;
  for (const char* row : {"train/attention-L64", "train/attention-L256", "train/attention-L512", "train/cat-L64",
                          "train/cat-L256", "train/cat-L512"}) {
    CHECK(names.find(std::string(row) + '\n') != std::string::npos);
  }
  const Json info = Json::parse(run({"info", "mqar-64-cat", "--json"}).out);
  CHECK(info["tensors"][0]["shape"] == Json{8192, 64});
  CHECK(info["step"]["flops"] > 1e9);
}

TEST_CASE("command: study names what it does not know, and lists its runs") {
  check_error(run({"study", "mqarr"}), 2, "the nearest is \"mqar\"");
  check_error(run({"study", "mqar", "--scale", "smal"}), 2, "the nearest is \"small\"");
  check_error(run({"study", "mqar", "--seeds", "0"}), 2, "--seeds");
  check_error(run({"study"}), 2, "NAME");
  const Ended help = run({"study", "--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("margay study mqar") != std::string::npos);
  const TempDir dir;
  const Ended list = test::run_margay({"study", "mqar", "--dry-run"}, {.folder = dir.file("")});
  CHECK(list.code == 0);
  CHECK(list.out.find("cat-d64-L128-lr0.01-seed123") != std::string::npos);
  CHECK(list.out.find("54 runs") != std::string::npos);
  CHECK(fs::is_empty(dir.file("")));
  CHECK(test::run_margay({"list", "studies"}).out.find("lcat-dimension") != std::string::npos);
}

TEST_CASE("command: a study is stopped by a signal, and goes on") {
  const TempDir dir;
  const Words words = {"study", "lcat-dimension", "--out", dir.file("out"), "--threads", "2"};
  Command command(words);
  REQUIRE(command.wait_for_output("40 runs"));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  command.signal(SIGINT);
  const Ended ended = command.wait();
  CHECK(ended.code == 130);
  CHECK(ended.error.empty());
  CHECK(ended.out.find("the same command goes on") != std::string::npos);
  CHECK(content(dir.file("out/report.md")).find("Not finished") != std::string::npos);
  CHECK(content(dir.file("out/results.csv")).starts_with("run,query_dims,"));

  Command again(words);
  REQUIRE(again.wait_for_output("40 runs"));
  again.signal(SIGTERM);
  CHECK(again.wait().code == 143);
}
