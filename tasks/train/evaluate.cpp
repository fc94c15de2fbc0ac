#include "tasks/train/evaluate.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/autograd.h"
#include "engine/parallel.h"
#include "engine/profiler.h"

namespace margay {
namespace {

double mean(double sum, int64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
}

/// The scored positions of a batch: loss of each, and whether its prediction is right.
struct Scores {
  std::vector<float> nll;
  std::vector<bool> correct;
};

Scores scores_of(const Batch& batch, const LinearCrossEntropy& result) {
  Scores scores{result.nll.detach().to_vector<float>(), std::vector<bool>(static_cast<size_t>(batch.labels))};
  const std::vector<int32_t> predicted = result.argmax.to_vector<int32_t>();
  for (int64_t row = 0; row < batch.labels; ++row) {
    scores.correct[row] = predicted[row] == batch.targets[batch.rows[row]];
  }
  return scores;
}

/// Shares of right predictions, example by example.
class ExampleAccuracy {
 public:
  void add(const Batch& batch, const std::vector<bool>& correct) {
    for (int64_t row = 0; row < batch.labels;) {  // the rows of an example lie together
      const int64_t example = batch.rows[row] / batch.columns;
      int64_t labels = 0, right = 0;
      for (; row < batch.labels && batch.rows[row] / batch.columns == example; ++row, ++labels) right += correct[row];
      sum_ += mean(static_cast<double>(right), labels);
      ++examples_;
    }
  }
  double value() const { return mean(sum_, examples_); }

 private:
  double sum_ = 0;
  int64_t examples_ = 0;  // with a scored position
};

}  // namespace

double LossSum::mean_loss() const { return mean(loss, labels); }
double LossSum::accuracy() const { return mean(static_cast<double>(correct), labels); }

LossInputs loss_inputs(const Batch& batch, Device device) {
  std::vector<int32_t> targets(batch.rows.size(), kIgnoredTarget);
  for (int64_t row = 0; row < batch.labels; ++row) targets[row] = batch.targets[batch.rows[row]];
  const Shape shape{static_cast<int64_t>(batch.rows.size())};
  return {from_values(batch.inputs, {batch.examples, batch.columns}, device), from_values(batch.rows, shape, device),
          from_values(targets, shape, device)};
}

void add_gradients(const LanguageModel& model, const Batch& batch, int64_t all_labels, const Tensor& rng,
                   LossSum& sum) {
  const LossInputs inputs = loss_inputs(batch, model.device());
  const auto forward = [&] {
    const ProfileScope profile("forward");
    return model.loss(inputs.ids, inputs.rows, inputs.targets, rng);
  };
  const LinearCrossEntropy result = forward();
  const double share = static_cast<double>(batch.labels) / static_cast<double>(all_labels);
  result.loss.backward(full(result.loss.shape(), share, result.loss.dtype(), result.loss.device()));
  const Scores scores = scores_of(batch, result);
  sum.loss = std::accumulate(scores.nll.begin(), scores.nll.end(), sum.loss);
  sum.correct += std::count(scores.correct.begin(), scores.correct.end(), true);
  sum.labels += batch.labels;
}

Evaluation evaluate(const LanguageModel& model, const Task& task, Split split, int64_t batch_size,
                    EvaluationObserver* observer) {
  const NoGrad no_grad;
  const auto begin = std::chrono::steady_clock::now();
  Evaluation evaluation;
  evaluation.examples = task.size(split);
  ExampleAccuracy accuracy;
  Batch batch;
  double loss = 0;
  int64_t labels = 0;
  for (int64_t first = 0; first < evaluation.examples; first += batch_size) {
    const int64_t examples = std::min(batch_size, evaluation.examples - first);
    make_batch(task, split, first, examples, task.config().seq_len, num_threads(), batch);
    const LossInputs inputs = loss_inputs(batch, model.device());
    const LinearCrossEntropy result = model.loss(inputs.ids, inputs.rows, inputs.targets);
    const Scores scores = scores_of(batch, result);
    loss = std::accumulate(scores.nll.begin(), scores.nll.end(), loss);
    labels += batch.labels;
    accuracy.add(batch, scores.correct);
    evaluation.tokens += batch.examples * batch.columns;
    if (observer) {
      const auto nll = std::span<const float>(scores.nll).first(static_cast<size_t>(batch.labels));
      observer->on_batch(batch, nll, first + examples, evaluation.examples);
    }
  }
  evaluation.loss = mean(loss, labels);
  evaluation.accuracy = accuracy.value();
  evaluation.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return evaluation;
}

}  // namespace margay
