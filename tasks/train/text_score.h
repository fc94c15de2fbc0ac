#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"
#include "tasks/tokenizer/tokenizer.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/svg.h"

namespace margay {

/// What scored tokens add up to.
struct TokenSum {
  int64_t tokens = 0;
  int64_t bytes = 0;  ///< of the text that they stand for
  double loss = 0;    ///< of all together, in nats

  /// NaN where there is nothing to divide by.
  double mean_loss() const;
  /// exp of the mean loss.
  double perplexity() const;
  /// Loss in bits by bytes: the same measure for any tokenizer.
  double bits_per_byte() const;
};

/// The scored tokens that were predicted at positions first ... last of their window: with as many tokens before them
/// in it as the position, and the one at it.
struct PositionSum {
  int64_t first, last;
  TokenSum sum = {};
};

/// Gathers the losses of a text: all of them, and by position, four ranges of positions to a factor of two. Its memory
/// does not grow with the text.
class TextScore : public EvaluationObserver {
 public:
  /// For windows of `seq_len` tokens of `tokenizer`. The token that ends a text counts as no bytes.
  TextScore(int64_t seq_len, const Tokenizer& tokenizer);

  void on_batch(const Batch& batch, std::span<const float> nll, int64_t examples, int64_t all) override;

  TokenSum total() const;
  const std::vector<PositionSum>& by_position() const { return by_position_; }

 private:
  std::vector<int32_t> token_bytes_;
  std::vector<PositionSum> by_position_;
  std::vector<int32_t> place_of_;  // of a position: its place in by_position_
};

/// Lines "first,last,tokens,bytes,loss,perplexity,bits_per_byte" under that head; positions that nothing was scored at
/// are left out.
std::string to_csv(const std::vector<PositionSum>& by_position);

/// Bits per byte by the tokens seen before, with a mark at the training length where the windows are longer.
Figure position_figure(const std::vector<PositionSum>& by_position, const std::string& subtitle,
                       int64_t trained_seq_len);

/// What turned the text of a task into its tokens.
std::unique_ptr<Tokenizer> tokenizer_of(const Task& task);

/// Hands out the bytes that are scored on the first `examples` examples of a split, in their order, in pieces.
void read_scored_text(const Task& task, Split split, int64_t examples, const Tokenizer& tokenizer,
                      const std::function<void(std::string_view)>& take);
/// Hands out all bytes of a split, in pieces. False where the task reads no text.
bool read_text(const Task& task, Split split, const Tokenizer& tokenizer,
               const std::function<void(std::string_view)>& take);

}  // namespace margay
