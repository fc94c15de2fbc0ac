#include <doctest/doctest.h>

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "engine/npy.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using margay::test::Command;
using margay::test::Ended;
using margay::test::run_margay;
using margay::test::TempDir;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string text_of(size_t bytes) {
  std::string text;
  for (size_t i = 0; text.size() < bytes; ++i) {
    text += "The cat number " + std::to_string(i * 7919 % 1000) + " sat on the mat, naïve as ever.\n";
  }
  return text;
}

/// A tokenizer learned from a text; empty in a build without PCRE2.
std::string learned(const TempDir& dir, const std::string& text) {
  const Ended ended =
      run_margay({"tokenizer", "train", text, "--vocab", "300", "--out", dir.file("tokenizer.json"), "--quiet"});
  if (ended.code == 2 && ended.error.find("PCRE2") != std::string::npos) return {};
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  CHECK(ended.out.empty());
  return dir.file("tokenizer.json");
}

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = content(entry.path());
  }
  return files;
}

void check_error(const Ended& ended, int code, const std::string& message) {
  CAPTURE(ended.error);
  CHECK(ended.code == code);
  CHECK(std::count(ended.error.begin(), ended.error.end(), '\n') == 1);
  CHECK(ended.error.find(message) != std::string::npos);
}

}  // namespace

TEST_CASE("command: tokenizer explains itself") {
  const Ended help = run_margay({"tokenizer", "--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("Usage: margay tokenizer train|encode|decode") != std::string::npos);
  for (const char* part : {"train", "encode", "decode"}) {
    const Ended ended = run_margay({"tokenizer", part, "--help"});
    CHECK(ended.code == 0);
    CHECK(ended.out.find("Usage: margay tokenizer " + std::string(part)) != std::string::npos);
    CHECK(ended.out.find("Examples\n") != std::string::npos);
  }
  check_error(run_margay({"tokenizer"}), 2, "is missing");
  check_error(run_margay({"tokenizer", "encod"}), 2, "the nearest is \"encode\"");
}

TEST_CASE("command: text to ids and back") {
  const TempDir dir;
  const std::string text = std::string("naïve cat\n\0 \xff\r\n", 16) + text_of(100), path = dir.write("text", text);
  std::vector<std::string> tokenizers{"bytes"};
  if (const std::string bpe = learned(dir, dir.write("long", text_of(20'000))); !bpe.empty()) tokenizers.push_back(bpe);
  for (const std::string& tokenizer : tokenizers) {
    CAPTURE(tokenizer);
    const Ended ids = run_margay({"tokenizer", "encode", path, "--tokenizer", tokenizer});
    REQUIRE(ids.code == 0);
    dir.write("ids", ids.out);
    CHECK(run_margay({"tokenizer", "decode", dir.file("ids"), "--tokenizer", tokenizer}).out == text);

    const Json json = Json::parse(run_margay({"tokenizer", "encode", path, "--tokenizer", tokenizer, "--json"}).out);
    CHECK(json["bytes"] == text.size());
    dir.write("ids", json["ids"].dump());
    CHECK(run_margay({"tokenizer", "decode", dir.file("ids"), "--tokenizer", tokenizer}).out == text);

    CHECK(run_margay({"tokenizer", "encode", path, "--tokenizer", tokenizer, "--out", dir.file("ids.npy")}).code == 0);
    const margay::Tensor array = margay::load_npy(dir.file("ids.npy"));
    CHECK(array.shape() == margay::Shape{1, static_cast<int64_t>(json["ids"].size())});
    run_margay({"tokenizer", "decode", dir.file("ids.npy"), "--tokenizer", tokenizer, "--out", dir.file("back")});
    CHECK(content(dir.file("back")) == text);
  }
  const std::vector<std::string> decode = {"tokenizer", "decode", dir.file("ids"), "--tokenizer", "bytes"};
  dir.write("ids", "1 2 256");
  check_error(run_margay(decode), 3, "from 0 to 255, got 256");
  dir.write("ids", "1 x");
  check_error(run_margay(decode), 3, "must hold token ids");
  check_error(run_margay({"tokenizer", "encode", path, "--tokenizer", dir.file("none.json")}), 3, "No such file");
}

TEST_CASE("command: prepare makes shards, and a model trained on them keeps its tokenizer") {
  const TempDir dir;
  const std::string text = dir.write("text", text_of(40'000)), tokenizer = learned(dir, text);
  if (tokenizer.empty()) return;
  const std::string shards = dir.file("shards");
  const std::vector<std::string> prepare = {"prepare", text, "--tokenizer", tokenizer, "--out", shards};
  const Ended made = run_margay(prepare);
  CHECK(made.code == 0);
  CHECK(made.out.find("model.vocab_size=") != std::string::npos);
  CHECK(run_margay(prepare).out.find("is finished already") != std::string::npos);
  CHECK(run_margay({"prepare", "--verify", "--out", shards}).code == 0);

  const std::string run = dir.file("run"), in_checkpoint = run + "/checkpoint/tokenizer.json";
  const Ended trained = run_margay({"train", "lm-kjv-cat", "task.path=" + shards, "model.vocab_size=300",
                                    "model.d_model=16", "task.seq_len=16", "train.steps=3", "train.warmup_steps=0",
                                    "task.test_examples=8", "--out", run, "--threads", "1", "--quiet"});
  CAPTURE(trained.error);
  REQUIRE(trained.code == 0);
  CHECK(content(in_checkpoint) == content(tokenizer));
  CHECK(content(run + "/tokenizer.json") == content(tokenizer));
  fs::remove(tokenizer);
  const Ended eval = run_margay({"eval", run, "--threads", "1"});
  CHECK(eval.code == 0);
  CHECK(eval.out.find("bits a byte") != std::string::npos);
  CHECK(run_margay({"eval", run, "task.path=" + text, "--json", "--threads", "1"}).code == 0);
  check_error(run_margay({"eval", run, "model.vocab_size=200"}), 2, "model.vocab_size");

  std::ofstream(shards + "/train-00000.bin", std::ios::in | std::ios::out) << "xx";
  check_error(run_margay({"prepare", "--verify", "--out", shards}), 3, "another digest");
  fs::resize_file(shards + "/train-00000.bin", 10);
  check_error(run_margay({"eval", run}), 3, "must have");
}

TEST_CASE("command: wrong usage of prepare and tokenizer train") {
  const TempDir dir;
  const std::string text = dir.write("text", text_of(1'000));
  check_error(run_margay({"prepare", text, "--out", dir.file("a")}), 2, "--tokenizer");
  check_error(run_margay({"prepare", "--tokenizer", "bytes", "--out", dir.file("a")}), 2, "FILE");
  check_error(run_margay({"prepare", text, "--tokenizer", "bytes"}), 2, "--out");
  check_error(run_margay({"prepare", dir.file("none"), "--tokenizer", "bytes", "--out", dir.file("a")}), 3, "No such");
  check_error(run_margay({"prepare", text, "--verify", "--out", dir.file("a")}), 2, "--verify");
  check_error(run_margay({"prepare", "--verify", "--out", dir.file("a")}), 3, "No such file");
  CHECK(!fs::exists(dir.file("a")));
  const Ended tiny = run_margay({"tokenizer", "train", text, "--vocab", "10", "--out", dir.file("t.json")});
  CHECK(tiny.code == 2);
  CHECK(!fs::exists(dir.file("t.json")));
}

TEST_CASE("command: prepare that is killed goes on to the same bytes") {
  const TempDir dir;
  const std::string text = dir.write("text", text_of(6'000'000));
  const auto prepare = [&](const std::string& folder) {
    return std::vector<std::string>{"prepare",        text,     "--tokenizer", "bytes", "--out", dir.file(folder),
                                    "--shard-tokens", "100000", "--quiet"};
  };
  REQUIRE(run_margay(prepare("whole")).code == 0);
  const auto whole = files_of(dir.file("whole"));
  CHECK(whole.size() == 62);
  int kills = 0;
  for (int attempt = 0; attempt < 30; ++attempt) {
    Command command(prepare("killed"));
    // Killed when so many shards are there, which is at another instant of the work each time.
    const auto shard = dir.file("killed/train-000" + std::to_string(10 + 3 * attempt) + ".bin");
    for (int wait = 0; wait < 2'000 && attempt < 12 && !fs::exists(shard) && !fs::exists(dir.file("killed/index.json"));
         ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (attempt < 12) command.signal(SIGKILL);
    const int code = command.wait().code;
    kills += code == 128 + SIGKILL;
    if (code == 0) break;
  }
  CHECK(kills > 3);
  CHECK(files_of(dir.file("killed")) == whole);

  Command command(prepare("stopped"));
  while (!fs::exists(dir.file("stopped/train-00005.bin"))) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  command.signal(SIGINT);
  const int code = command.wait().code;
  CHECK((code == 130 || code == 0));
  CHECK(run_margay(prepare("stopped")).code == 0);
  CHECK(files_of(dir.file("stopped")) == whole);
}
