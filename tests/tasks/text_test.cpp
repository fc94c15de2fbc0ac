#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tasks/shards/prepare.h"
#include "tests/support/chi_square.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;

namespace {

TaskConfig text(const std::string& path, int64_t seq_len = 16) {
  TaskConfig config;
  config.name = "text";
  config.path = path;
  config.seq_len = seq_len;
  return config;
}

std::string data_error(const TaskConfig& config) {
  try {
    make_task(config);
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

/// Where in a file a window lies, for files in which no window occurs twice.
int64_t place_of(const std::string& file, std::span<const int32_t> window) {
  std::string bytes(window.begin(), window.end());
  const size_t place = file.find(bytes);
  CHECK(file.find(bytes, place + 1) == std::string::npos);
  return place == std::string::npos ? -1 : static_cast<int64_t>(place);
}

std::string numbered_lines(size_t bytes) {
  std::string file;
  for (int line = 0; file.size() < bytes; ++line) file += fmt::format("line {:06} {:06x}\n", line, line * 7919);
  return file;
}

struct Borders {
  int64_t validation, test, end;
};

/// Checks every window of a split against the file, and returns how often each byte is a scored target.
std::vector<int> scored(const Task& task, Split split, const std::string& file, int64_t seq_len) {
  std::vector<int> times(file.size(), 0);
  std::vector<int32_t> inputs(seq_len), targets(seq_len);
  for (int64_t i = 0; i < task.size(split); ++i) {
    task.make(split, i, seq_len, inputs, targets);
    const int64_t place = place_of(file, inputs);
    REQUIRE(place >= 0);
    for (int64_t t = 0; t < seq_len; ++t) {
      if (targets[t] == kIgnoredTarget) continue;
      CHECK(targets[t] == static_cast<unsigned char>(file[place + t + 1]));
      ++times[place + t + 1];
    }
  }
  return times;
}

}  // namespace

TEST_CASE("text: held-out windows score every byte of their part once, whatever the stride") {
  const test::TempDir dir;
  const std::string file = numbered_lines(12'345);
  const std::string path = dir.write("lines.txt", file);
  const auto border = [&](size_t percent) {  // the line start at or after the percentage
    return file.find('\n', file.size() * percent / 100) + 1;
  };
  for (const int64_t stride : {0, 1, 5, 16}) {
    TaskConfig config = text(path);
    config.stride = stride;
    config.test_examples = 1'000'000;
    const auto task = make_task(config);
    for (const Split split : {Split::validation, Split::test}) {
      const size_t begin = border(split == Split::validation ? 90 : 95);
      const size_t end = split == Split::validation ? border(95) : file.size();
      std::vector<int> expected(file.size(), 0);
      std::fill(expected.begin() + begin + 1, expected.begin() + end, 1);
      CHECK(scored(*task, split, file, 16) == expected);
    }
  }
}

TEST_CASE("text: training windows lie anywhere in the first part, and never beyond") {
  const test::TempDir dir;
  const std::string file = numbered_lines(1'000);
  const auto task = make_task(text(dir.write("lines.txt", file)));
  const int64_t end = static_cast<int64_t>(file.find('\n', file.size() * 90 / 100)) + 1;
  const size_t places = static_cast<size_t>(end - 16);
  std::vector<double> counts(places, 0.0);
  std::vector<int32_t> inputs(16), targets(16);
  for (int64_t i = 0; i < 20'000; ++i) {
    task->make(Split::train, i, 16, inputs, targets);
    const int64_t place = place_of(file, inputs);
    REQUIRE(place >= 0);
    REQUIRE(place + 16 < end);  // the last target too
    ++counts[place];
    for (size_t t = 0; t < 16; ++t) REQUIRE(targets[t] == static_cast<unsigned char>(file[place + t + 1]));
  }
  CHECK(test::fits_law(counts, std::vector<double>(places, 1.0 / static_cast<double>(places))));
}

TEST_CASE("text: a file without line ends is cut at 90 and 95 per cent, and all byte values are kept") {
  const test::TempDir dir;
  std::string file(10'000, '\0');
  for (size_t i = 0; i < file.size(); ++i) {
    file[i] = static_cast<char>(i * i % 251 + i / 256);
    if (file[i] == '\n') file[i] = '\xff';
  }
  TaskConfig config = text(dir.write("bytes.bin", file), 64);
  const auto task = make_task(config);
  CHECK(task->shape().vocab_size == 256);
  std::vector<int32_t> inputs(64), targets(64);
  for (const Split split : {Split::validation, Split::test}) {
    task->make(split, 0, 64, inputs, targets);
    const size_t begin = split == Split::validation ? 9'000 : 9'500;
    for (size_t t = 0; t < 64; ++t) {
      CHECK(inputs[t] == static_cast<unsigned char>(file[begin + t]));
      CHECK(targets[t] == static_cast<unsigned char>(file[begin + t + 1]));
    }
    CHECK(task->size(split) == (499 + 63) / 64);
  }
  CHECK(task->size(Split::train) == config.train_examples);
}

TEST_CASE("text: test_examples bounds the windows") {
  const test::TempDir dir;
  TaskConfig config = text(dir.write("lines.txt", numbered_lines(10'000)));
  config.test_examples = 3;
  CHECK(make_task(config)->size(Split::test) == 3);
  Batch batch;
  const auto task = make_task(config);
  CHECK_THROWS_AS(make_batch(*task, Split::test, 0, 4, 16, 1, batch), ConfigError);
}

TEST_CASE("text: a file that cannot serve is a DataError that names it") {
  const test::TempDir dir;
  const std::string missing = dir.file("missing.txt");
  CHECK(data_error(text(missing)).find(missing) != std::string::npos);
  CHECK(data_error(text(missing)).find("No such file") != std::string::npos);
  CHECK(data_error(text(dir.write("empty.txt", ""))).find("is empty") != std::string::npos);
  CHECK(data_error(text(dir.file("."))).find("directory") != std::string::npos);
  CHECK(data_error(text("/dev/zero")).find("not a regular file") != std::string::npos);
  const std::string short_path = dir.write("short.txt", std::string(100, 'a'));
  const std::string error = data_error(text(short_path));
  CHECK(error.find(short_path) != std::string::npos);
  CHECK(error.find("of its 100 bytes 5 are the validation part") != std::string::npos);
  CHECK(error.find("task.seq_len = 16 needs at least 17") != std::string::npos);
}

TEST_CASE("text: the shortest file that serves, and one byte less") {
  const test::TempDir dir;
  for (const size_t window : {2, 9}) {
    for (size_t size = 1; size < 25 * window; ++size) {
      const size_t validation = size * 90 / 100, test = size * 95 / 100;
      const bool fits = test - validation >= window && size - test >= window;
      const auto path = dir.write("tiny.txt", std::string(size, 'a'));
      CHECK(data_error(text(path, static_cast<int64_t>(window) - 1)).empty() == fits);
    }
  }
}

TEST_CASE("text: a split can be read from end to end") {
  const test::TempDir dir;
  const std::string file = numbered_lines(300'000);
  const auto task = make_task(text(dir.write("lines.txt", file)));
  std::string all;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    size_t pieces = 0;
    CHECK(task->read(split, [&](std::span<const int32_t> tokens) {
      all.append(tokens.begin(), tokens.end());
      ++pieces;
    }));
    CHECK((pieces > 1) == (split == Split::train));
  }
  CHECK(all == file);
}

TEST_CASE("text: shards give the examples of the file that they were made of") {
  const test::TempDir dir;
  const std::string path = dir.write("lines.txt", numbered_lines(30'000));
  std::vector<std::string> tokenizers{"bytes"};
  if (test::has_bpe()) tokenizers.push_back(dir.write("tokenizer.json", test::small_tokenizer_json().dump()));
  for (const std::string& tokenizer : tokenizers) {
    const std::string folder = dir.file(tokenizer == "bytes" ? "bytes" : "bpe");
    PrepareObserver nobody;
    prepare_shards({.files = {path}, .tokenizer = tokenizer, .folder = folder, .shard_tokens = 1'000}, nobody);
    TaskConfig of_file = text(path), of_shards = text(folder);
    of_file.tokenizer = tokenizer;
    const auto file = make_task(of_file), shards = make_task(of_shards);
    CHECK(file->shape().vocab_size == shards->shape().vocab_size);
    CHECK(file->tokenizer_json() == shards->tokenizer_json());
    Batch a, b;
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      REQUIRE((split == Split::train || file->size(split) == shards->size(split)));
      make_batch(*file, split, 0, 30, 16, 1, a);
      make_batch(*shards, split, 0, 30, 16, 2, b);
      CHECK(a.inputs == b.inputs);
      CHECK(a.targets == b.targets);
    }
    of_shards.tokenizer = tokenizer;
    CHECK_NOTHROW(make_task(of_shards));
  }
}

TEST_CASE("text: the tokens must fit the model, and the tokenizer the shards" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  Config config;
  config.task = text(dir.write("lines.txt", numbered_lines(30'000)));
  test::Json json = test::small_tokenizer_json();
  config.task.tokenizer = dir.write("tokenizer.json", json.dump());
  const int64_t tokens = make_task(config.task)->shape().vocab_size;
  config.model.vocab_size = tokens;
  CHECK_NOTHROW(make_task(config));
  config.model.vocab_size = tokens - 1;
  CHECK_NOTHROW(validate(config));  // opens no file
  CHECK_THROWS_AS(make_task(config), ConfigError);

  PrepareObserver nobody;
  prepare_shards({.files = {config.task.path}, .tokenizer = config.task.tokenizer, .folder = dir.file("shards")},
                 nobody);
  config.task.path = dir.file("shards");
  config.model.vocab_size = tokens;
  CHECK_NOTHROW(make_task(config));
  json["normalizer"] = {{"type", "NFC"}};
  config.task.tokenizer = dir.write("other.json", json.dump());
  CHECK_THROWS_AS(make_task(config), ConfigError);
  config.task.tokenizer = "";
  CHECK_THROWS_AS(make_task(config), ConfigError);
}
