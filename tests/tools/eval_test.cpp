// `margay eval` on texts: what it measures and writes.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using namespace margay;
using margay::test::Ended;
using margay::test::TempDir;
using Json = nlohmann::json;

namespace {

using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A small model of bytes with untrained weights, and its text.
std::string text_model(const TempDir& dir, const Words& words = {}) {
  std::string text;
  for (int line = 0; text.size() < 20'000; ++line) text += fmt::format("{} and {} are {}\n", line, line * 7, line * 8);
  const std::string folder = dir.file("model");
  const Ended ended =
      test::run_margay(Words{"init", "lm-kjv-neox-cat", "--out", folder, "model.d_model=16", "model.n_heads=2",
                             "model.max_seq_len=16", "task.seq_len=16", "task.path=" + dir.write("text.txt", text)} +
                       words);
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  return folder;
}

Ended eval(const std::string& model, const Words& words) {
  return test::run_margay(Words{"eval", model, "--threads", "1"} + words);
}

Json eval_json(const std::string& model, const Words& words = {}) {
  const Ended ended = eval(model, words + Words{"--json"});
  CAPTURE(ended.error);
  REQUIRE(ended.code == 0);
  return Json::parse(ended.out);
}

void check_error(const Ended& ended, int code, const std::string& message) {
  CAPTURE(ended.error);
  CHECK(ended.code == code);
  CHECK(std::count(ended.error.begin(), ended.error.end(), '\n') == 1);
  CHECK(ended.error.starts_with("margay eval: "));
  CHECK(ended.error.find(message) != std::string::npos);
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("eval: a text's loss as perplexity, bits and by position; files of them") {
  const TempDir dir;
  const std::string model = text_model(dir);
  const Json json = eval_json(model, {"--csv", dir.file("p.csv"), "--plot", dir.file("p.svg")});
  const double loss = json["loss"];
  CHECK(loss == doctest::Approx(std::log(256)).epsilon(0.05));
  CHECK(json["perplexity"].get<double>() == doctest::Approx(std::exp(loss)));
  CHECK(json["bits_per_byte"].get<double>() == doctest::Approx(loss / std::log(2)));
  CHECK(json["scored_tokens"] == json["scored_bytes"]);
  for (const char* key : {"accuracy", "examples", "tokens_per_second"}) CHECK(json[key].is_number());
  double sum = 0;
  int64_t tokens = 0;
  for (const Json& range : json["by_position"]) {
    sum += range["loss"].get<double>() * range["tokens"].get<double>();
    tokens += range["tokens"].get<int64_t>();
  }
  CHECK(tokens == json["scored_tokens"]);
  CHECK(sum / static_cast<double>(tokens) == doctest::Approx(loss));
  CHECK(content(dir.file("p.csv")).starts_with("first,last,"));
  CHECK(content(dir.file("p.svg")).starts_with("<svg"));
  const std::string text = eval(model, {}).out;
  CHECK(text.find("bits a byte, perplexity") != std::string::npos);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}

TEST_CASE("eval: length, stride, split and all of a text") {
  const TempDir dir;
  const std::string model = text_model(dir, {"task.test_examples=5"});
  CHECK(eval_json(model)["examples"] == 5);
  const Json all = eval_json(model, {"--all"});
  const int64_t scored = all["scored_tokens"];
  CHECK(scored > 900);  // 5 % of the text
  CHECK(scored < 1100);
  const Json sliding = eval_json(model, {"--all", "--stride", "4"});
  CHECK(sliding["scored_tokens"] == scored);
  CHECK(sliding["examples"] > 3 * all["examples"].get<int64_t>());
  CHECK(sliding["loss"] != all["loss"]);
  const Json longer = eval_json(model, {"--all", "--length", "64"});
  CHECK(longer["scored_tokens"] == scored);
  CHECK(longer["seq_len"] == 64);
  CHECK(longer["by_position"].back()["last"] == 63);
  CHECK(longer["loss"] == eval_json(model, {"--all", "task.seq_len=64"})["loss"]);
  CHECK(eval_json(model, {"--all", "--split", "validation"})["loss"] != all["loss"]);
}

TEST_CASE("eval: YaRN changes what a model says beyond its training length, as an override") {
  const TempDir dir;
  const std::string model = text_model(dir);
  const double plain = eval_json(model, {"--length", "64"})["loss"];
  CHECK(eval_json(model, {"--length", "64", "model.yarn_scale=4"})["loss"] != plain);
  CHECK(eval_json(model, {"--length", "64", "model.yarn_scale=1"})["loss"] == plain);
  const TempDir other;
  const std::string learned = text_model(other, {"model.position=learned"});
  check_error(eval(learned, {"--length", "64"}), 2, "model.max_seq_len must be at least the 64 tokens");
}

TEST_CASE("eval: compressors are measured on the bytes that are scored") {
  const TempDir dir;
  const std::string model = text_model(dir);
  const Json json = eval_json(model, {"--all", "--compressors"});
  REQUIRE(json["compressors"].size() == 3);
  for (const Json& row : json["compressors"]) {
    CAPTURE(row.dump());
    if (row["installed"] == false) continue;
    const double bits = 8 * row["bytes"].get<double>() / json["scored_bytes"].get<double>();
    CHECK(row["bits_per_byte"].get<double>() == doctest::Approx(bits));
    CHECK(bits < 8);
    if (row["name"] == "xz -9e") CHECK(row["bytes_given_training"] < row["bytes"]);  // the others see less far
  }
  const std::string table = eval(model, {"--compressors"}).out;
  CHECK(table.find("given the training text") != std::string::npos);
  CHECK(table.find("gzip -9") != std::string::npos);
}

TEST_CASE("eval: wrong arguments are named") {
  const TempDir dir;
  const std::string model = text_model(dir);
  check_error(eval(model, {"--stride", "17"}), 2, "task.stride");
  check_error(eval(model, {"--length", "0"}), 2, "--length");
  check_error(eval(model, {"--split", "train"}), 2, "--split");
  check_error(eval(model, {"--plot", dir.file("no/such/p.svg")}), 3, "no/such");
  check_error(eval(model, {"task.name=mqar", "task.num_kv_pairs=2", "--compressors"}), 2, "--compressors is for");
}
