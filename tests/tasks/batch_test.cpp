#include "tasks/batch.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/registry.h"
#include "tests/support/chi_square.h"
#include "tests/support/temp_dir.h"

using namespace margay;

namespace {

/// One configuration of every task that is registered.
std::vector<TaskConfig> all_tasks(const test::TempDir& dir) {
  std::vector<TaskConfig> configs;
  for (const TaskInfo* info : task_registry()) {
    TaskConfig config;
    config.name = info->name;
    config.vocab_size = 300;
    if (config.name == "text") {
      std::string text;
      for (int i = 0; text.size() < 20'000; ++i) text += std::to_string(i * i) + "\n";
      config.path = dir.write("text.txt", text);
      config.stride = 24;  // held-out windows are scored in part
    }
    configs.push_back(config);
  }
  return configs;
}

Batch batch_of(const Task& task, Split split, int64_t first, int64_t examples, int64_t seq_len, int threads = 1) {
  Batch batch;
  make_batch(task, split, first, examples, seq_len, threads, batch);
  return batch;
}

bool same(const Batch& a, const Batch& b) {
  return a.examples == b.examples && a.columns == b.columns && a.labels == b.labels && a.inputs == b.inputs &&
         a.targets == b.targets && a.rows == b.rows;
}

}  // namespace

TEST_CASE("batch: same bytes for any number of threads, at any place of the stream") {
  const test::TempDir dir;
  for (const TaskConfig& config : all_tasks(dir)) {
    CAPTURE(config.name);
    const auto task = make_task(config);
    for (const int64_t examples : {1, 3, 200, 333}) {
      const Batch one = batch_of(*task, Split::train, 17, examples, 64);
      for (const int threads : {1, 2, 4, 7}) {
        CHECK(same(one, batch_of(*make_task(config), Split::train, 17, examples, 64, threads)));
      }
    }
  }
}

TEST_CASE("batch: fewer examples are the first ones of more, and indices may be given one by one") {
  const test::TempDir dir;
  for (const TaskConfig& config : all_tasks(dir)) {
    CAPTURE(config.name);
    const auto task = make_task(config);
    const Batch many = batch_of(*task, Split::train, 0, 100, 64), few = batch_of(*task, Split::train, 0, 30, 64);
    CHECK(std::equal(few.inputs.begin(), few.inputs.end(), many.inputs.begin()));
    CHECK(std::equal(few.targets.begin(), few.targets.end(), many.targets.begin()));
    const std::vector<int64_t> indices = {99, 5, 5, 0};
    Batch picked;
    make_batch(*task, Split::train, indices, 64, 2, picked);
    const int64_t columns = task->columns(64);
    for (size_t i = 0; i < indices.size(); ++i) {
      CHECK(std::equal(picked.inputs.begin() + i * columns, picked.inputs.begin() + (i + 1) * columns,
                       many.inputs.begin() + indices[i] * columns));
    }
  }
}

TEST_CASE("batch: seeds, all 64 bits of them, splits and indices give different examples") {
  const test::TempDir dir;
  for (TaskConfig config : all_tasks(dir)) {
    CAPTURE(config.name);
    std::vector<std::vector<int32_t>> seen;
    const auto add = [&](const Batch& batch) {
      CHECK(std::find(seen.begin(), seen.end(), batch.inputs) == seen.end());
      seen.push_back(batch.inputs);
    };
    for (const int64_t seed : {int64_t{7}, 7 + (int64_t{1} << 32), int64_t{8}, int64_t{-7}}) {
      config.seed = seed;
      const auto task = make_task(config);
      add(batch_of(*task, Split::train, 0, 4, 64));
      add(batch_of(*task, Split::train, 4, 4, 64));
      if (config.name == "text") continue;  // held-out windows lie at fixed places
      add(batch_of(*task, Split::validation, 0, 4, 64));
      add(batch_of(*task, Split::test, 0, 4, 64));
    }
  }
}

TEST_CASE("batch: rows list the scored positions, then -1, at a size of the shape alone") {
  const test::TempDir dir;
  for (const TaskConfig& config : all_tasks(dir)) {
    CAPTURE(config.name);
    const auto task = make_task(config);
    for (const Split split : {Split::train, Split::test}) {
      const int64_t examples = split == Split::train ? 50 : std::min<int64_t>(task->size(split), 50);
      const Batch batch = batch_of(*task, split, 0, examples, 64, 3);
      std::vector<int32_t> expected;
      for (size_t at = 0; at < batch.targets.size(); ++at) {
        if (batch.targets[at] != kIgnoredTarget) expected.push_back(static_cast<int32_t>(at));
      }
      CHECK(batch.labels == static_cast<int64_t>(expected.size()));
      expected.resize(static_cast<size_t>(examples * task->max_labels(64)), -1);
      CHECK(batch.rows == expected);
    }
  }
}

TEST_CASE("batch: memory is used again") {
  const auto task = make_task(TaskConfig());
  Batch batch = batch_of(*task, Split::train, 0, 64, 64);
  const auto* inputs = batch.inputs.data();
  const auto* rows = batch.rows.data();
  make_batch(*task, Split::train, 64, 64, 64, 1, batch);
  make_batch(*task, Split::train, 128, 10, 32, 1, batch);
  CHECK(batch.inputs.data() == inputs);
  CHECK(batch.rows.data() == rows);
  CHECK(same(batch, batch_of(*task, Split::train, 128, 10, 32)));
}

TEST_CASE("batch: requests that a task cannot meet are refused") {
  TaskConfig config;
  config.train_examples = 100;
  const auto task = make_task(config);
  CHECK_THROWS_WITH_AS(batch_of(*task, Split::train, 0, 4, 63),
                       "task mqar: seq_len must be 16 to 64 in steps of 2, got 63", ConfigError);
  CHECK_THROWS_AS(batch_of(*task, Split::train, 0, 4, 14), ConfigError);
  CHECK_THROWS_AS(batch_of(*task, Split::train, 0, 4, 66), ConfigError);
  CHECK_THROWS_AS(batch_of(*task, Split::train, -1, 4, 64), ConfigError);
  CHECK_THROWS_AS(batch_of(*task, Split::train, 97, 4, 64), ConfigError);
  CHECK_NOTHROW(batch_of(*task, Split::train, 96, 4, 64));
  CHECK_THROWS_AS(batch_of(*task, Split::train, 0, -1, 64), ConfigError);
  CHECK_THROWS_AS(batch_of(*task, Split::train, 0, int64_t{1} << 31, 64), ConfigError);
  CHECK(batch_of(*task, Split::train, 0, 0, 64).rows.empty());
  config.train_examples = 0;  // no end
  CHECK_NOTHROW(batch_of(*make_task(config), Split::train, int64_t{1} << 50, 4, 64));
}

TEST_CASE("batch: lengths are uniform over those the task can make, and a function of seed and step") {
  TaskConfig config;
  CHECK(batch_seq_len(*make_task(config), 1, 2) == 64);
  config.min_seq_len = 17;
  const auto task = make_task(config);
  std::vector<double> counts(24, 0.0);  // 18, 20 ... 64
  int differ = 0;
  for (int64_t step = 0; step < 24'000; ++step) {
    const int64_t seq_len = batch_seq_len(*task, 123, step);
    REQUIRE(seq_len % 2 == 0);
    REQUIRE(seq_len >= 18);
    REQUIRE(seq_len <= 64);
    ++counts[(seq_len - 18) / 2];
    CHECK(batch_seq_len(*task, 123, step) == seq_len);
    differ += batch_seq_len(*task, 123 + (int64_t{1} << 32), step) != seq_len;
  }
  CHECK(test::fits_law(counts, std::vector<double>(24, 1.0 / 24)));
  CHECK(differ > 20'000);
  config.min_seq_len = 64;
  CHECK(batch_seq_len(*make_task(config), 1, 2) == 64);
}

TEST_CASE("batch: a shuffled order is a permutation of its own in each epoch") {
  const auto order = shuffled_order(1000, 5, 0);
  CHECK(order == shuffled_order(1000, 5, 0));
  CHECK(order != shuffled_order(1000, 5, 1));
  CHECK(order != shuffled_order(1000, 6, 0));
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  std::vector<int64_t> all(1000);
  std::iota(all.begin(), all.end(), 0);
  CHECK(sorted == all);
  CHECK(order != all);
  CHECK(shuffled_order(0, 5, 0).empty());
  std::vector<double> counts(6, 0.0);
  for (int64_t epoch = 0; epoch < 6000; ++epoch) {
    const auto three = shuffled_order(3, 5, epoch);
    ++counts[three[0] * 2 + (three[1] > three[2])];
  }
  CHECK(test::fits_law(counts, std::vector<double>(6, 1.0 / 6)));
}

TEST_CASE("tasks: an unknown one is answered with the nearest") {
  CHECK_THROWS_WITH_AS(find_task("mqat"), "unknown task \"mqat\"; the nearest is \"mqar\"", ConfigError);
  for (const TaskInfo* info : task_registry()) CHECK(&find_task(info->name) == info);
}
