#include <doctest/doctest.h>

#include <filesystem>
#include <functional>

#include "engine/error.h"
#include "engine/rng.h"
#include "tasks/shards/prepare.h"
#include "tasks/shards/shard_set.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;
using test::Json;
namespace fs = std::filesystem;

namespace {

/// A folder of shards of 400 bytes, and its index.
class Shards {
 public:
  Shards() {
    PrepareObserver nobody;
    prepare_shards({.files = {dir.write("text.txt", std::string(400, 'x'))}, .folder = folder, .shard_tokens = 100},
                   nobody);
    const MappedFile file(folder + "/index.json");
    index = Json::parse(file.bytes().begin(), file.bytes().end());
  }

  /// The message of the DataError that refuses the folder with another index.
  std::string refusal(const std::string& text) const {
    dir.write("out/index.json", text);
    try {
      const ShardSet shards(folder);
      shards.verify();
      std::vector<int32_t> tokens(static_cast<size_t>(shards.index().of(Split::train).tokens()));
      shards.read(Split::train, 0, tokens);
    } catch (const DataError& error) {
      const std::string message = error.what();
      CHECK(message.find('\n') == std::string::npos);
      return message;
    }
    return {};
  }
  std::string refusal(const std::function<void(Json&)>& change) const {
    Json changed = index;
    change(changed);
    return refusal(changed.dump());
  }
  bool refuses(const std::function<void(Json&)>& change, const char* part) const {
    return refusal(change).find(part) != std::string::npos;
  }

  test::TempDir dir;
  std::string folder = dir.file("out");
  Json index;
};

}  // namespace

TEST_CASE("shards: an index that lies is refused") {
  const Shards shards;
  CHECK(shards.refusal(shards.index.dump()).empty());
  CHECK(shards.refuses([](Json& j) { j["format"] = 2; }, "format"));
  CHECK(shards.refuses([](Json& j) { j["dtype"] = "u16"; }, "dtype"));
  CHECK(shards.refuses([](Json& j) { j["tokenizer"]["name"] = "../tokenizer.json"; }, "tokenizer.name"));
  CHECK(shards.refuses([](Json& j) { j["tokenizer"]["vocab_size"] = 300; }, "vocab_size"));
  CHECK(shards.refuses([](Json& j) { j["tokenizer"]["vocab_size"] = 1ULL << 63; }, "vocab_size"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["tokens"] = 361; }, "the sum of those of its shards"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["tokens"] = -1; }, "splits.train.tokens"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["documents"] = {1, 2}; }, "the sum of those of its doc"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["documents"] = {360, -1, 1}; }, "splits.train.documents"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][0]["tokens"] = 0; }, "shards[0].tokens"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][0]["file"] = "/etc/passwd"; }, "train-00000.bin"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][0]["file"] = "../text.txt"; }, "train-00000.bin"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][1]["file"] = "train-00000.bin"; }, "train-00001"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][0]["sha256"] = "00"; }, "SHA-256"));
  CHECK(shards.refuses([](Json& j) { j["splits"]["train"]["shards"][0]["sha256"] = std::string(64, '0'); },
                       "another digest"));
  CHECK(shards.refuses([](Json& j) { j["splits"].erase("test"); }, "splits.test"));
  CHECK(shards.refuses(
      [](Json& j) {
        j["splits"]["train"]["shards"].push_back(j["splits"]["train"]["shards"][0]);
        j["splits"]["train"]["shards"].back()["file"] = "train-00004.bin";
        j["splits"]["train"]["tokens"] = 460;
        j["splits"]["train"]["documents"] = {460};
      },
      "No such file"));
  CHECK(shards.refuses(
      [](Json& j) {
        for (Json& shard : j["splits"]["train"]["shards"]) shard["tokens"] = 1LL << 62;
      },
      "shards[0].tokens"));
  CHECK(shards.refusal(std::string("{\"a\":") + std::string(100, '[')).find("nested too deeply") != std::string::npos);
  CHECK(shards.refusal(std::string("")).find("is empty") != std::string::npos);
}

TEST_CASE("shards: damaged files are refused") {
  const Shards shards;
  const auto index = shards.index.dump();
  const auto refuses = [&](const char* part) { return shards.refusal(index).find(part) != std::string::npos; };
  shards.dir.write("out/train-00001.bin", std::string(99, 'x'));
  CHECK(refuses("must have 100 bytes"));
  shards.dir.write("out/train-00001.bin", std::string(101, 'x'));
  CHECK(refuses("must have 100 bytes"));
  shards.dir.write("out/train-00001.bin", std::string(100, 'y'));
  CHECK(refuses("another digest"));
  shards.dir.write("elsewhere", std::string(100, 'x'));
  fs::remove(shards.dir.file("out/train-00001.bin"));
  fs::create_symlink("../elsewhere", shards.dir.file("out/train-00001.bin"));
  CHECK(refuses("not a regular file"));
  fs::remove(shards.dir.file("out/train-00001.bin"));
  CHECK(refuses("No such file"));
}

TEST_CASE("shards: ids beyond the vocabulary are an error where they are read" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  PrepareObserver nobody;
  prepare_shards({.files = {dir.write("text.txt", std::string(400, 'x'))},
                  .tokenizer = dir.write("tokenizer.json", test::small_tokenizer_json().dump()),
                  .folder = dir.file("out")},
                 nobody);
  const auto tokens = static_cast<size_t>(ShardSet(dir.file("out")).index().of(Split::train).tokens());
  dir.write("out/train-00000.bin", std::string(2 * tokens, '\xff'));
  const ShardSet shards(dir.file("out"));
  std::vector<int32_t> window(3);
  CHECK_THROWS_AS(shards.read(Split::train, 5, window), DataError);

  dir.write("out/tokenizer.json", test::small_tokenizer_json().dump() + ' ');
  CHECK_THROWS_AS(shards.tokenizer(), DataError);
}

TEST_CASE("shards: a changed index is refused or tells the truth, and never more") {
  const Shards shards;
  const std::string good = shards.index.dump();
  for (uint64_t seed = 0; seed < 400; ++seed) {
    RandomStream random(seed, 4);
    std::string text = good;
    for (uint32_t left = 1 + random.below(3); left > 0; --left) {
      const size_t at = random.below(static_cast<uint32_t>(text.size()));
      switch (random.below(3)) {
        case 0:
          text[at] = "0123456789[]{}\",:-.etrufalsn"[random.below(28)];
          break;
        case 1:
          text.erase(at, 1 + random.below(10));
          break;
        default:
          text.insert(at, text.substr(random.below(static_cast<uint32_t>(text.size())), random.below(40)));
      }
    }
    shards.refusal(text);
  }
  for (size_t end = 1; end < good.size(); end += 7) CHECK(!shards.refusal(good.substr(0, end)).empty());
}
