#pragma once
#include <cstdint>
#include <span>

#include "models/language_model.h"
#include "tasks/batch.h"
#include "tasks/task.h"
#include "tasks/train/metrics.h"

namespace margay {

/// A batch as LanguageModel::loss takes it.
struct LossInputs {
  Tensor ids;            ///< i32 [examples, columns]
  Tensor rows, targets;  ///< i32 [R], as batch.rows, and the target at each: kIgnoredTarget where the row is padding
};
LossInputs loss_inputs(const Batch& batch, Device device);

/// The target at each of batch.rows, `padding` where the row is padding.
void fill_targets(const Batch& batch, int32_t padding, std::span<int32_t> targets);
/// What the loss at each of batch.rows weighs in the mean over `all_labels` positions: 0 where the row is padding.
void fill_weights(const Batch& batch, int64_t all_labels, std::span<float> weights);

/// What the scored positions of several batches add up to.
struct LossSum {
  double loss = 0;  ///< of all positions together, in nats
  int64_t correct = 0, labels = 0;

  /// Loss and most likely token at each of batch.rows.
  void add(const Batch& batch, std::span<const float> nll, std::span<const int32_t> predicted);
  /// NaN without a scored position.
  double mean_loss() const;
  double accuracy() const;
};

/// Runs the model forward and backward on one of several batches. With the weights f32 [R] of fill_weights() the
/// gradients of all of them add up to those of the mean loss of all positions, however the positions are spread. `rng`
/// as for LanguageModel::loss.
LinearCrossEntropy add_gradients(const LanguageModel& model, const LossInputs& inputs, const Tensor& weights,
                                 const Tensor& rng);
/// The same on one of the batches that share `all_labels` scored positions, whose losses go to `sum`.
void add_gradients(const LanguageModel& model, const Batch& batch, int64_t all_labels, const Tensor& rng, LossSum& sum);

/// Told how an evaluation goes. Nothing of it changes the results.
class EvaluationObserver {
 public:
  virtual ~EvaluationObserver() = default;
  /// After each batch; nll[i], i < batch.labels, is the loss at batch.rows[i]. `examples` of `all` are done.
  virtual void on_batch(const Batch& /*batch*/, std::span<const float> /*nll*/, int64_t /*examples*/, int64_t /*all*/) {
  }
};

/// Loss and accuracy on all examples of a split, `batch_size` at a time, without dropout.
Evaluation evaluate(const LanguageModel& model, const Task& task, Split split, int64_t batch_size,
                    EvaluationObserver* observer = nullptr);

}  // namespace margay
