#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "tasks/config.h"

namespace margay {

/// The parts of a task's data. Examples of different parts come from disjoint random streams, or from disjoint parts of
/// a file.
enum class Split : uint8_t { train, validation, test };

/// The target of a position that is not scored.
inline constexpr int32_t kIgnoredTarget = -100;

/// What a task's examples look like, known without making one or opening a file.
struct TaskShape {
  int64_t vocab_size;     ///< tokens are 0 ... vocab_size - 1; at least so many where a file says how many
  int64_t first_seq_len;  ///< shortest sequence; longer ones in steps of `seq_len_step`, up to task.seq_len
  int64_t seq_len_step = 1;
  int64_t extra_columns = 0;  ///< tokens of an example beyond seq_len
};

/// A source of examples: rows of input tokens, each with the token to predict at it. An example is a pure function of
/// the task's configuration, split, index and length, so any thread can make any example, in any order.
class Task {
 public:
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  const TaskConfig& config() const { return config_; }
  const TaskShape& shape() const { return shape_; }
  /// Tokens of an example.
  int64_t columns(int64_t seq_len) const { return seq_len + shape_.extra_columns; }

  /// Examples of the split; 0 = no end.
  virtual int64_t size(Split split) const {
    return split == Split::train ? config_.train_examples : config_.test_examples;
  }
  /// The most scored positions that an example can have.
  virtual int64_t max_labels(int64_t seq_len) const = 0;
  /// Writes example `index` >= 0: columns(seq_len) inputs, and at each the target to predict there, or kIgnoredTarget.
  /// `seq_len` is one that the shape allows (make_batch checks it). Thread-safe.
  virtual void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
                    std::span<int32_t> targets) const = 0;
  /// The tokenizer.json by which text becomes tokens; empty for bytes, and where there is no text.
  virtual const std::string& tokenizer_json() const {
    static const std::string none;
    return none;
  }

  /// Hands out all tokens of a split of a text in their order, in pieces. False where there is none: examples are made,
  /// not read.
  virtual bool read(Split /*split*/, const std::function<void(std::span<const int32_t>)>& /*take*/) const {
    return false;
  }

 protected:
  Task(const TaskConfig& config, const TaskShape& shape) : config_(config), shape_(shape) {}

 private:
  TaskConfig config_;
  TaskShape shape_;
};

}  // namespace margay
