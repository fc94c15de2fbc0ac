// `margay sample`: what it prints to files, terminals and as JSON, and how it ends.

#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tasks/utf8.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using namespace margay;
using margay::test::Command;
using margay::test::Ended;
using margay::test::TempDir;
using Json = nlohmann::json;

namespace {

using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// An untrained model: its bytes are nearly uniform, so most of them are no UTF-8.
std::string byte_model(const TempDir& dir, const Words& words = {}) {
  const std::string folder = dir.file("model");
  const Ended ended = test::run_margay(Words{"init", "mqar-64-cat", "--out", folder, "model.d_model=16",
                                             "model.vocab_size=256", "model.max_seq_len=16"} +
                                       words);
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  return folder;
}

Ended sample(const std::string& model, const Words& words, const Command::Options& options = {}) {
  return test::run_margay(Words{"sample", model, "--threads", "1"} + words, options);
}

void check_error(const Ended& ended, int code, const std::string& message) {
  CAPTURE(ended.error);
  CHECK(ended.code == code);
  CHECK(std::count(ended.error.begin(), ended.error.end(), '\n') == 1);
  CHECK(ended.error.starts_with("margay sample: "));
  CHECK(ended.error.find(message) != std::string::npos);
}

std::vector<Json> objects(const std::string& lines) {
  std::istringstream text(lines);
  std::vector<Json> all;
  for (std::string line; std::getline(text, line);) all.push_back(Json::parse(line));
  return all;
}

}  // namespace

TEST_CASE("sample: goes on with a text, the same for the same seed") {
  const TempDir dir;
  const std::string model = byte_model(dir, {"model.position=learned"});
  const auto noel = [&](const Words& words) { return sample(model, Words{"--prompt", "Noël"} + words); };
  const Ended first = noel({"--tokens", "60", "--seed", "1"});  // beyond the 16 learned positions
  CAPTURE(first.error);
  REQUIRE(first.code == 0);
  CHECK(first.out.starts_with("Noël"));
  CHECK(first.out.size() == 5 + 60);  // to a file or pipe bytes go as they are
  CHECK(first.out == noel({"--tokens", "60", "--seed", "1"}).out);
  CHECK(first.out != noel({"--tokens", "60", "--seed", "2"}).out);
  CHECK(noel({"--tokens", "0"}).out == "Noël");
  CHECK(noel({"--temperature", "0"}).out == noel({"--top-k", "1", "--seed", "9"}).out);
  check_error(noel({"--tokens", "60", "--no-slide"}), 2, "model.max_seq_len = 16");
}

TEST_CASE("sample: several samples, each under its number, the same as alone") {
  const TempDir dir;
  const std::string model = byte_model(dir);
  const Words words = {"--prompt", "ab\n", "--tokens", "20", "--top-k", "3"};
  const std::string all = sample(model, words + Words{"--count", "3", "--first", "5"}).out;
  std::string wanted;
  for (const char* number : {"5", "6", "7"}) {
    const std::string text = sample(model, words + Words{"--first", number}).out;
    CHECK(text.size() == 23);
    wanted += (wanted.empty() ? "" : wanted.back() == '\n' ? "\n" : "\n\n");
    wanted += "==> sample " + std::string(number) + " <==\n" + text;
  }
  CHECK(all == wanted + "\n");
}

TEST_CASE("sample: JSON holds text, tokens and why it ended") {
  const TempDir dir;
  const std::string model = byte_model(dir);
  const Words words = {"--prompt", "\xFF", "--tokens", "30", "--json"};
  const std::vector<Json> plain = objects(sample(model, words + Words{"--count", "2"}).out);
  REQUIRE(plain.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(plain[i]["sample"] == i);
    CHECK(plain[i]["prompt"] == "\xEF\xBF\xBD");
    CHECK(plain[i]["stop_reason"] == "length");
    CHECK(plain[i]["tokens"] == 30);
    CHECK(plain[i]["tokens_per_second"] > 0);
    std::string bytes;
    for (const Json& id : plain[i]["token_ids"]) bytes += static_cast<char>(id.get<int>());
    CHECK(plain[i]["text"] == valid_utf8(bytes));
  }
  // Three bytes of what was drawn, as a stop string: the text ends before it.
  const auto ids = plain[0]["token_ids"].get<std::vector<int>>();
  std::string stop;
  size_t at = 1;
  for (; at + 2 < ids.size(); ++at)
    if (std::all_of(&ids[at], &ids[at] + 2, [](int id) { return id > 0 && id < 0x80; })) break;
  REQUIRE(at + 2 < ids.size());
  for (size_t i = at; i < at + 2; ++i) stop += static_cast<char>(ids[i]);
  const Json cut = objects(sample(model, words + Words{"--stop", stop, "--stop", "[not, there]"}).out).at(0);
  CHECK(cut["stop_reason"] == "stop_string");
  CHECK(cut["tokens"] == at + 2);
}

TEST_CASE("sample: a prompt from a file or standard input") {
  const TempDir dir;
  const std::string model = byte_model(dir), file = dir.write("prompt.txt", std::string("two\nlines\n\0", 11));
  const std::string out = sample(model, {"--prompt-file", file, "--tokens", "9"}).out;
  CHECK(out.size() == 20);
  CHECK(out.starts_with(std::string("two\nlines\n\0", 11)));
  CHECK(sample(model, {"--prompt-file", "-", "--tokens", "9"}, {.input = file}).out == out);
  check_error(sample(model, {"--prompt-file", dir.file("missing")}), 3, "missing");
  check_error(sample(model, {"--prompt-file", dir.file(".")}), 3, "cannot be read");
  check_error(sample(model, {"--prompt-file", "-"}), 2, "--prompt must not be empty");
  check_error(sample(model, {"--prompt-file", file, "--prompt", "x"}), 2, "--prompt-file");
  check_error(sample(model, {}), 2, "--prompt");
}

TEST_CASE("sample: a terminal gets whole characters and no commands, unless it is asked for") {
  const TempDir dir;
  const std::string model = byte_model(dir);
  const Command::Options terminal{.environment = {{"TERM", "xterm"}}, .terminal = true};
  const Words words = {"--prompt", "caf\xC3", "--tokens", "400"};
  const Ended shown = sample(model, words, terminal);
  CHECK(shown.code == 0);
  CHECK(shown.out.starts_with("caf"));
  CHECK(shown.out.ends_with("\n"));
  CHECK(valid_utf8(shown.out) == shown.out);
  CHECK(std::all_of(shown.out.begin(), shown.out.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 ? c != 0x7f : c == '\n' || c == '\r' || c == '\t';
  }));
  CHECK(shown.out.find("\xC2\x9B") == std::string::npos);
  const std::string raw = sample(model, words + Words{"--raw"}, terminal).out;
  CHECK(valid_utf8(raw) != raw);
}

TEST_CASE("sample: Ctrl-C ends it with what there is; a reader that leaves ends it quietly") {
  const TempDir dir;
  const std::string model = byte_model(dir);
  const Words words = {"sample", model, "--threads", "1", "--prompt", "begin", "--tokens", "100000000"};
  Command text(words);
  REQUIRE(text.wait_for_output("begin"));
  text.signal(SIGINT);
  const Ended ended = text.wait();
  CHECK(ended.code == 130);
  CHECK(ended.error.empty());
  CHECK(ended.out.starts_with("begin"));

  Command json(Words{"sample", model, "--threads", "1", "--prompt", "x", "--tokens", "100000000", "--stop", "zzzz"} +
               Words{"--count", "2", "--json"});
  REQUIRE(json.wait_for_handler(SIGTERM));
  json.signal(SIGTERM);
  const Ended stopped = json.wait();
  CHECK(stopped.code == 143);
  const std::vector<Json> samples = objects(stopped.out);
  REQUIRE(samples.size() == 2);
  CHECK(samples[1]["stop_reason"] == "interrupted");

  const Ended broken = test::run_margay(words, {.break_pipe = true});
  CHECK(broken.code == 0);
  CHECK(broken.error.empty());
}

TEST_CASE("sample: wrong arguments are named") {
  const TempDir dir;
  const std::string model = byte_model(dir);
  const auto check = [&](const Words& words, const std::string& message) {
    check_error(sample(model, Words{"--prompt", "x"} + words), 2, message);
  };
  check({"--top-p", "2"}, "--top-p");
  check({"--min-p", "-1"}, "--min-p");
  check({"--top-k", "1.5"}, "--top-k");
  check({"--temperature", "nan"}, "--temperature");
  check({"--repetition-penalty", "0"}, "--repetition-penalty");
  check({"--count", "0"}, "--count");
  check({"--stop", ""}, "--stop must not be empty");
  check({"--prompt", "y"}, "--prompt takes one value, once");
  check_error(sample(model, {"--prompt", ""}), 2, "--prompt must not be empty");
  check_error(sample(model, {"--prompt", "x", "--tokenizer", dir.file("none.json")}), 3, "none.json");
  const TempDir other;
  const std::string recall = byte_model(other, {"model.vocab_size=64"});
  check_error(sample(recall, {"--prompt", "x"}), 2, "names no tokenizer");
  check_error(sample(recall, {"--prompt", "x", "--tokenizer", "bytes"}), 2, "at least the 256 tokens");
  check_error(sample(dir.file("nothing"), {"--prompt", "x"}), 3, "does not exist");
}
