#include "tasks/shards/prepare.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "engine/error.h"
#include "tasks/shards/shard_set.h"
#include "tasks/shards/sources.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;
namespace fs = std::filesystem;

namespace {

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// All files of a folder with what they hold.
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = content(entry.path());
  }
  return files;
}

std::vector<int32_t> tokens_of(const ShardSet& shards, Split split) {
  std::vector<int32_t> tokens(static_cast<size_t>(shards.index().of(split).tokens()));
  shards.read(split, 0, tokens);
  return tokens;
}

/// Stops after so many reports of progress.
class StopAfter final : public PrepareObserver {
 public:
  explicit StopAfter(int reports) : left_(reports) {}
  void on_progress(const PrepareProgress& progress) override {
    --left_;
    last = progress;
  }
  bool stop_requested() override { return left_ <= 0; }
  PrepareProgress last;

 private:
  int left_;
};

PrepareEnd prepare(const PrepareOptions& options, int stop_after = 1 << 30) {
  StopAfter observer(stop_after);
  return prepare_shards(options, observer);
}

std::string lines(uint64_t seed, size_t bytes) {
  std::string text;
  for (uint64_t i = seed; text.size() < bytes; ++i) text += test::hard_text(i, 12) + '\n';
  return text;
}

/// Borders between the parts of texts of these sizes: how many bytes each split has.
std::vector<int64_t> split_sizes(const std::vector<std::string>& texts) {
  const test::TempDir dir;
  std::vector<TextFile> files;
  for (size_t i = 0; i < texts.size(); ++i) {
    files.push_back({dir.write(fmt::format("{}.txt", i), texts[i]), static_cast<int64_t>(texts[i].size())});
  }
  std::vector<int64_t> sizes;
  size_t file = 0;
  int64_t offset = 0;  // all stretches together must be all texts in their order
  for (const auto& stretches : split_texts(files)) {
    sizes.push_back(0);
    for (const TextStretch& stretch : stretches) {
      if (offset == files[file].size) {
        ++file;
        offset = 0;
      }
      CHECK(stretch.file == file);
      CHECK(stretch.begin == offset);
      CHECK(stretch.ends_document == (stretch.end == files[file].size));
      offset = stretch.end;
      sizes.back() += stretch.end - stretch.begin;
    }
  }
  CHECK(file == files.size() - 1);
  CHECK(offset == files.back().size);
  return sizes;
}

}  // namespace

TEST_CASE("shards: texts are split near 90 and 95 per cent, between documents or else lines") {
  const std::string word(10, 'a');
  CHECK(split_sizes({std::string(1000, 'a')}) == std::vector<int64_t>{900, 50, 50});
  CHECK(split_sizes({std::string(904, 'a') + '\n' + std::string(95, 'b')}) == std::vector<int64_t>{905, 45, 50});
  CHECK(split_sizes(std::vector<std::string>(100, word)) == std::vector<int64_t>{900, 50, 50});
  CHECK(split_sizes(std::vector<std::string>(101, word)) == std::vector<int64_t>{910, 50, 50});
  CHECK(split_sizes({std::string(400, 'a'), std::string(600, 'b')}) == std::vector<int64_t>{900, 50, 50});
  CHECK(split_sizes({"a"}) == std::vector<int64_t>{0, 0, 1});
  CHECK(split_sizes({std::string(895, 'a'), std::string(105, 'b')}) == std::vector<int64_t>{900, 50, 50});
  CHECK(split_sizes({std::string(905, 'a'), std::string(95, 'b')}) == std::vector<int64_t>{905, 45, 50});
}

TEST_CASE("shards: folders stand for the files in them, by name") {
  const test::TempDir dir;
  fs::create_directories(dir.file("t/b"));
  dir.write("t/z.txt", "z");
  dir.write("t/b/a.txt", "a");
  dir.write("t/.hidden", "h");
  dir.write("t/empty", "");
  fs::create_symlink("z.txt", dir.file("t/link"));
  const std::vector<TextFile> files = list_text_files(std::vector<std::string>{dir.file("t"), dir.file("t/z.txt")});
  REQUIRE(files.size() == 3);
  CHECK(files[0].path == dir.file("t/b/a.txt"));
  CHECK(files[1].path == dir.file("t/z.txt"));
  CHECK(files[2].path == files[1].path);
  CHECK_THROWS_AS(list_text_files(std::vector<std::string>{dir.file("missing")}), DataError);
  CHECK_THROWS_AS(list_text_files(std::vector<std::string>{dir.file("t/empty")}), DataError);
  CHECK_THROWS_AS(list_text_files(std::vector<std::string>{"/dev/null"}), DataError);
}

TEST_CASE("shards: the bytes of a text, whatever they are") {
  const test::TempDir dir;
  const std::string text = lines(1, 50'000);
  const std::string path = dir.write("text.txt", text);
  CHECK(prepare({.files = {path}, .folder = dir.file("out"), .shard_tokens = 7'000}) == PrepareEnd::finished);
  const ShardSet shards(dir.file("out"));
  CHECK(shards.index().width() == 1);
  std::string back;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    back += shards.tokenizer()->decode(tokens_of(shards, split));
  }
  CHECK(back == text);
  CHECK(shards.index().of(Split::train).shards.size() == 7);
  shards.verify();

  std::vector<int32_t> window(500), all = tokens_of(shards, Split::train);
  for (const int64_t first : {0, 6'400, 6'999, 7'000, 13'750}) {  // across the borders of shards
    shards.read(Split::train, first, window);
    CHECK(std::equal(window.begin(), window.end(), all.begin() + first));
  }
}

TEST_CASE("shards: documents have the tokens of their whole text, and an end" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  const std::string json = dir.write("tokenizer.json", test::small_tokenizer_json().dump());
  const auto tokenizer = make_tokenizer(json);
  std::vector<std::string> paths;
  std::vector<int32_t> expected;
  std::vector<int64_t> documents;
  for (uint64_t i = 0; i < 200; ++i) {
    const std::string text = lines(i, 300);
    paths.push_back(dir.write(fmt::format("{:03}.txt", i), text));
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    expected.insert(expected.end(), tokens.begin(), tokens.end());
    expected.push_back(*tokenizer->end_of_text());
    documents.push_back(static_cast<int64_t>(tokens.size()) + 1);
  }
  prepare({.files = paths, .tokenizer = json, .folder = dir.file("out"), .shard_tokens = 1'000});
  const ShardSet shards(dir.file("out"));
  CHECK(shards.index().width() == 2);
  CHECK(shards.index().vocab_size == tokenizer->vocab_size());
  CHECK(shards.tokenizer()->json() == tokenizer->json());
  std::vector<int32_t> tokens;
  std::vector<int64_t> counted;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    const std::vector<int32_t> part = tokens_of(shards, split);
    tokens.insert(tokens.end(), part.begin(), part.end());
    const auto& more = shards.index().of(split).documents;
    counted.insert(counted.end(), more.begin(), more.end());
  }
  CHECK(tokens == expected);
  CHECK(counted == documents);
}

TEST_CASE("shards: a long document is encoded in parts, with the tokens of the whole" *
          doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  const std::string json = dir.write("tokenizer.json", test::small_tokenizer_json().dump());
  const std::string text = lines(0, 1'600'000);
  prepare({.files = {dir.write("text.txt", text)}, .tokenizer = json, .folder = dir.file("out")});
  const ShardSet shards(dir.file("out"));
  const auto bytes = static_cast<size_t>(shards.index().of(Split::train).bytes);
  CHECK(tokens_of(shards, Split::train) == make_tokenizer(json)->encode(text.substr(0, bytes)));
}

TEST_CASE("shards: a run that is stopped anywhere goes on to the same bytes" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  PrepareOptions options{.files = {},
                         .tokenizer = dir.write("tokenizer.json", test::small_tokenizer_json().dump()),
                         .folder = dir.file("whole"),
                         .shard_tokens = 30'000};
  for (uint64_t i = 0; i < 12; ++i) {
    options.files.push_back(dir.write(fmt::format("{:02}.txt", i), lines(i, i == 3 ? 1'500'000 : 100'000)));
  }
  prepare(options);
  const auto whole = files_of(options.folder);
  CHECK(whole.count("progress.json") == 0);
  for (const int every : {3, 4}) {
    options.folder = dir.file(fmt::format("stopped-{}", every));
    int runs = 1;
    while (prepare(options, every) == PrepareEnd::stopped) {
      REQUIRE(++runs < 100);
      std::ofstream(options.folder + "/.margay-1-0.tmp") << "left by a kill";
      // What is written behind the journal is written again.
      const fs::path last = options.folder + "/train-00099.bin";
      std::ofstream(last) << "garbage";
      fs::remove(last);
    }
    CHECK(runs > 2);
    CHECK(files_of(options.folder) == whole);
    CHECK(prepare(options) == PrepareEnd::was_finished);
  }
}

TEST_CASE("shards: a folder of something else is left alone" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  const std::string text = dir.write("text.txt", lines(1, 100'000));
  PrepareOptions options{.files = {text}, .folder = dir.file("out"), .shard_tokens = 100'000};
  prepare(options);
  PrepareOptions other = options;
  other.tokenizer = dir.write("tokenizer.json", test::small_tokenizer_json().dump());
  CHECK_THROWS_AS(prepare(other), ConfigError);
  other = options;
  other.files = {dir.write("other.txt", "a")};
  CHECK_THROWS_AS(prepare(other), ConfigError);

  // A text that changes, or a shard that goes, between two parts of a run.
  options.files = {dir.write("long.txt", lines(1, 1'300'000))};
  options.folder = dir.file("stopped");
  REQUIRE(prepare(options, 1) == PrepareEnd::stopped);
  PrepareOptions larger = options;
  larger.shard_tokens = 2'000;
  CHECK_THROWS_AS(prepare(larger), ConfigError);
  fs::rename(options.folder + "/train-00000.bin", dir.file("kept"));
  CHECK_THROWS_AS(prepare(options), DataError);
  fs::rename(dir.file("kept"), options.folder + "/train-00000.bin");
  fs::last_write_time(options.files[0], fs::file_time_type::clock::now() + std::chrono::hours(1));
  CHECK_THROWS_AS(prepare(options), ConfigError);
}
