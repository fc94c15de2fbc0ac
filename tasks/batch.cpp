#include "tasks/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>

#include "engine/error.h"
#include "engine/parallel.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

constexpr int64_t kTokensOfAPiece = 4096;

void check_request(const Task& task, int64_t examples, int64_t seq_len) {
  const TaskShape& shape = task.shape();
  const int64_t longest = task.config().seq_len;
  if (seq_len < shape.first_seq_len || seq_len > longest || (longest - seq_len) % shape.seq_len_step != 0) {
    throw ConfigError(fmt::format("task {}: seq_len must be {} to {} in steps of {}, got {}", task.config().name,
                                  shape.first_seq_len, longest, shape.seq_len_step, seq_len));
  }
  const int64_t most = std::numeric_limits<int32_t>::max() / task.columns(seq_len);
  if (examples < 0 || examples > most) {
    throw ConfigError(fmt::format("a batch of sequences of {} tokens must have 0 to {} examples, got {}",
                                  task.columns(seq_len), most, examples));
  }
}

void check_index(const Task& task, Split split, int64_t index) {
  const int64_t size = task.size(split);
  if (index < 0 || (size > 0 && index >= size)) {
    throw ConfigError(fmt::format("task {}: example index must be at least 0{}, got {}", task.config().name,
                                  size > 0 ? fmt::format(" and below {}", size) : "", index));
  }
}

/// Makes the examples, and lists each one's scored positions in its own share of batch.rows, -1 after the last.
template <class IndexOf>
void make_examples(const Task& task, Split split, const IndexOf& index_of, int64_t seq_len, int threads, Batch& batch) {
  const int64_t columns = batch.columns, most_labels = task.max_labels(seq_len);
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto make_one = [&](int64_t example) {
    const std::span inputs = std::span(batch.inputs).subspan(example * columns, columns);
    const std::span targets = std::span(batch.targets).subspan(example * columns, columns);
    const std::span rows = std::span(batch.rows).subspan(example * most_labels, most_labels);
    task.make(split, index_of(example), seq_len, inputs, targets);
    auto row = rows.begin();
    for (int64_t column = 0; column < columns; ++column) {
      if (targets[column] != kIgnoredTarget) *row++ = static_cast<int32_t>(example * columns + column);
    }
    std::fill(row, rows.end(), -1);
  };
  const int64_t grain = std::max<int64_t>(1, kTokensOfAPiece / columns);
  parallel_ranges(Cpu{threads}, batch.examples, grain, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t example = begin; example < end; ++example) make_one(example);
    } catch (...) {  // out of memory: an exception must not leave a parallel region
      const std::lock_guard lock(failure_mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

template <class IndexOf>
void fill_batch(const Task& task, Split split, int64_t examples, const IndexOf& index_of, int64_t seq_len, int threads,
                Batch& batch) {
  batch.examples = examples;
  batch.columns = task.columns(seq_len);
  batch.inputs.resize(examples * batch.columns);
  batch.targets.resize(examples * batch.columns);
  batch.rows.resize(examples * task.max_labels(seq_len));
  make_examples(task, split, index_of, seq_len, threads, batch);
  const auto unused = std::remove(batch.rows.begin(), batch.rows.end(), -1);
  batch.labels = unused - batch.rows.begin();
  std::fill(unused, batch.rows.end(), -1);
}

}  // namespace

void make_batch(const Task& task, Split split, std::span<const int64_t> indices, int64_t seq_len, int threads,
                Batch& batch) {
  const auto examples = static_cast<int64_t>(indices.size());
  check_request(task, examples, seq_len);
  for (const int64_t index : indices) check_index(task, split, index);
  fill_batch(
      task, split, examples, [&](int64_t example) { return indices[example]; }, seq_len, threads, batch);
}

void make_batch(const Task& task, Split split, int64_t first, int64_t examples, int64_t seq_len, int threads,
                Batch& batch) {
  check_request(task, examples, seq_len);
  check_index(task, split, first);
  if (examples > 1) check_index(task, split, first + examples - 1);
  fill_batch(
      task, split, examples, [&](int64_t example) { return first + example; }, seq_len, threads, batch);
}

int64_t batch_seq_len(const Task& task, int64_t seed, int64_t step) {
  const TaskConfig& config = task.config();
  if (config.min_seq_len == 0) return config.seq_len;
  const int64_t unit = task.shape().seq_len_step, shorter = (config.seq_len - config.min_seq_len) / unit;
  RandomStream random(derived_seed(seed, "task.min_seq_len"), static_cast<uint64_t>(step));
  return config.seq_len - unit * random.below(static_cast<uint32_t>(shorter + 1));
}

std::vector<int64_t> shuffled_order(int64_t examples, int64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(examples));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(derived_seed(seed, "train.shuffle"), static_cast<uint64_t>(epoch));
  for (int64_t left = examples; left > 1; --left) {
    std::swap(order[left - 1], order[uniform_below(random, static_cast<uint64_t>(left))]);
  }
  return order;
}

}  // namespace margay
