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

/// Whether the prediction at a scored position is right.
bool is_right(const Batch& batch, int64_t row, std::span<const int32_t> predicted) {
  return predicted[row] == batch.targets[batch.rows[row]];
}

/// Shares of right predictions, example by example.
class ExampleAccuracy {
 public:
  void add(const Batch& batch, std::span<const int32_t> predicted) {
    for (int64_t row = 0; row < batch.labels;) {  // the rows of an example lie together
      const int64_t example = batch.rows[row] / batch.columns;
      int64_t labels = 0, right = 0;
      for (; row < batch.labels && batch.rows[row] / batch.columns == example; ++row, ++labels)
        right += is_right(batch, row, predicted);
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

void LossSum::add(const Batch& batch, std::span<const float> nll, std::span<const int32_t> predicted) {
  loss = std::accumulate(nll.begin(), nll.begin() + batch.labels, loss);
  for (int64_t row = 0; row < batch.labels; ++row) correct += is_right(batch, row, predicted);
  labels += batch.labels;
}

void fill_targets(const Batch& batch, int32_t padding, std::span<int32_t> targets) {
  std::ranges::fill(targets, padding);
  for (int64_t row = 0; row < batch.labels; ++row) targets[row] = batch.targets[batch.rows[row]];
}

void fill_weights(const Batch& batch, int64_t all_labels, std::span<float> weights) {
  const auto share = static_cast<float>(static_cast<double>(batch.labels) / static_cast<double>(all_labels));
  std::ranges::fill(weights, 0.0f);
  std::ranges::fill(weights.first(static_cast<size_t>(batch.labels)), share / static_cast<float>(batch.labels));
}

LossInputs loss_inputs(const Batch& batch, Device device) {
  std::vector<int32_t> targets(batch.rows.size());
  fill_targets(batch, kIgnoredTarget, targets);
  const Shape shape{static_cast<int64_t>(batch.rows.size())};
  return {from_values(batch.inputs, {batch.examples, batch.columns}, device), from_values(batch.rows, shape, device),
          from_values(targets, shape, device)};
}

LinearCrossEntropy add_gradients(const LanguageModel& model, const LossInputs& inputs, const Tensor& weights,
                                 const Tensor& rng) {
  const auto forward = [&] {
    const ProfileScope profile("forward");
    return model.loss(inputs.ids, inputs.rows, inputs.targets, rng);
  };
  const LinearCrossEntropy result = forward();
  result.nll.backward(weights.to(result.nll.dtype()));
  return result;
}

void add_gradients(const LanguageModel& model, const Batch& batch, int64_t all_labels, const Tensor& rng,
                   LossSum& sum) {
  std::vector<float> weights(batch.rows.size());
  fill_weights(batch, all_labels, weights);
  const Tensor cotangent = from_values(weights, {static_cast<int64_t>(weights.size())}, model.device());
  const LinearCrossEntropy result = add_gradients(model, loss_inputs(batch, model.device()), cotangent, rng);
  sum.add(batch, result.nll.detach().to_vector<float>(), result.argmax.to_vector<int32_t>());
}

Evaluation evaluate(const LanguageModel& model, const Task& task, Split split, int64_t batch_size,
                    EvaluationObserver* observer) {
  const NoGrad no_grad;
  const auto begin = std::chrono::steady_clock::now();
  Evaluation evaluation;
  evaluation.examples = task.size(split);
  ExampleAccuracy accuracy;
  Batch batch;
  LossSum sum;
  for (int64_t first = 0; first < evaluation.examples; first += batch_size) {
    const int64_t examples = std::min(batch_size, evaluation.examples - first);
    make_batch(task, split, first, examples, task.config().seq_len, num_threads(), batch);
    const LossInputs inputs = loss_inputs(batch, model.device());
    const LinearCrossEntropy result = model.loss(inputs.ids, inputs.rows, inputs.targets);
    const std::vector<float> nll = result.nll.to_vector<float>();
    const std::vector<int32_t> predicted = result.argmax.to_vector<int32_t>();
    sum.add(batch, nll, predicted);
    accuracy.add(batch, predicted);
    evaluation.tokens += batch.examples * batch.columns;
    if (observer) {
      const auto labelled = std::span(nll).first(static_cast<size_t>(batch.labels));
      observer->on_batch(batch, labelled, first + examples, evaluation.examples);
    }
  }
  evaluation.loss = sum.mean_loss();
  evaluation.accuracy = accuracy.value();
  evaluation.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return evaluation;
}

}  // namespace margay
