#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tasks/task.h"

namespace margay {

/// Examples stacked as a model takes them.
struct Batch {
  int64_t examples = 0;
  int64_t columns = 0;                   ///< tokens of an example
  int64_t labels = 0;                    ///< scored positions
  std::vector<int32_t> inputs, targets;  ///< [examples, columns]
  /// Flat indices (example * columns + column) of the scored positions, rising, then -1 up to
  /// examples * task.max_labels(seq_len) entries: a size that depends on the batch's shape alone.
  std::vector<int32_t> rows;
};

/// Fills `batch`, whose memory is used again, with the examples of these indices, or with `examples` from `first` on.
/// The bytes do not depend on `threads`. Throws ConfigError if the task cannot make this length, if an index is
/// negative or outside a split of fixed size, or if the batch has more tokens than int32 can count.
void make_batch(const Task& task, Split split, std::span<const int64_t> indices, int64_t seq_len, int threads,
                Batch& batch);
void make_batch(const Task& task, Split split, int64_t first, int64_t examples, int64_t seq_len, int threads,
                Batch& batch);

/// Length of the training batch of a step: task.seq_len, or where task.min_seq_len is set one of the task's lengths
/// from there to task.seq_len, each equally likely, as a pure function of seed and step.
int64_t batch_seq_len(const Task& task, int64_t seed, int64_t step);

/// The order of examples 0 ... examples - 1 in an epoch that is shuffled: a pure function of the arguments.
std::vector<int64_t> shuffled_order(int64_t examples, int64_t seed, int64_t epoch);

}  // namespace margay
