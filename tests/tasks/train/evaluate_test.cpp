#include "tasks/train/evaluate.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "engine/autograd.h"
#include "tasks/registry.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;

namespace {

/// Loss and accuracy from the logits of one example at a time.
Evaluation naive_evaluation(const LanguageModel& model, const Task& task, Split split) {
  const NoGrad no_grad;
  const int64_t columns = task.columns(task.config().seq_len), vocab = model.config().vocab_size;
  std::vector<int32_t> inputs(columns), targets(columns);
  Evaluation evaluation;
  double labels = 0;
  for (int64_t example = 0; example < task.size(split); ++example) {
    task.make(split, example, task.config().seq_len, inputs, targets);
    const std::vector<float> logits = model.logits(from_values(inputs, {1, columns})).to_vector<float>();
    double right = 0, scored = 0;
    for (int64_t t = 0; t < columns; ++t) {
      if (targets[t] == kIgnoredTarget) continue;
      const auto row = std::span(logits).subspan(t * vocab, vocab);
      double sum = 0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      evaluation.loss += std::log(sum) - static_cast<double>(row[targets[t]]);
      right += std::max_element(row.begin(), row.end()) - row.begin() == targets[t];
      ++scored;
    }
    evaluation.accuracy += right / scored / static_cast<double>(task.size(split));
    labels += scored;
  }
  evaluation.loss /= labels;
  return evaluation;
}

/// A model whose logits are far from equal.
LanguageModel made_up_model(const Config& config) {
  LanguageModel model(config.model, 1);
  for (const Parameter& parameter : model.parameters()) {
    const Tensor value = parameter.value.detach();
    std::vector<float> values = value.to_vector<float>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = 2 * values[i] + 0.2f * std::sin(static_cast<float>(i));
    value.copy_from(from_values(values, value.shape()));
  }
  return model;
}

std::vector<float> gradients_of(const LanguageModel& model) {
  std::vector<float> gradients;
  for (const Parameter& parameter : model.parameters()) {
    const std::vector<float> values = parameter.value.grad().to_vector<float>();
    gradients.insert(gradients.end(), values.begin(), values.end());
    Tensor(parameter.value).zero_grad();
  }
  return gradients;
}

}  // namespace

TEST_CASE("evaluate: loss and accuracy are those of the logits, for any batch size") {
  const test::Threads single(1);
  const Config config = test::tiny_config();
  const auto task = make_task(config.task);
  const LanguageModel model = made_up_model(config);
  const Evaluation naive = naive_evaluation(model, *task, Split::test);
  for (const int64_t batch_size : {1, 7, 30, 64}) {
    const Evaluation evaluation = evaluate(model, *task, Split::test, batch_size);
    CHECK(evaluation.loss == doctest::Approx(naive.loss).epsilon(1e-5));
    CHECK(evaluation.accuracy == doctest::Approx(naive.accuracy));
    CHECK(evaluation.examples == 30);
    CHECK(evaluation.tokens == 30 * 16);
  }
}

TEST_CASE("evaluate: accuracy is averaged by example first") {
  const test::Threads single(1);
  const Config config = test::tiny_config();
  const LanguageModel model = made_up_model(config);
  const std::vector<int32_t> ids(32, 1);
  const std::vector<float> logits = model.logits(from_values(ids, {2, 16})).to_vector<float>();
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.begin() + 64) - logits.begin());

  /// One scored token that is right in the first example, three in the second that are wrong.
  class Uneven final : public Task {
   public:
    Uneven(const TaskConfig& config, int32_t best) : Task(config, {64, 16}), best_(best) {}
    int64_t max_labels(int64_t) const override { return 3; }
    void make(Split, int64_t index, int64_t, std::span<int32_t> inputs, std::span<int32_t> targets) const override {
      std::fill(inputs.begin(), inputs.end(), 1);
      std::fill(targets.begin(), targets.end(), kIgnoredTarget);
      if (index == 0) targets[0] = best_;
      if (index == 1) std::fill_n(targets.begin(), 3, (best_ + 1) % 64);
    }

   private:
    int32_t best_;
  };
  TaskConfig task_config = config.task;
  task_config.test_examples = 3;  // the last has no label: it does not count
  const Evaluation evaluation = evaluate(model, Uneven(task_config, best), Split::test, 2);
  CHECK(evaluation.accuracy == doctest::Approx(0.5));
}

TEST_CASE("add_gradients: several batches weigh by their labels, as one batch of them all") {
  const test::Threads single(1);
  Config config = test::tiny_config();
  config.task.name = "text";
  const LanguageModel model = made_up_model(config);
  Batch all;
  all.examples = 3;
  all.columns = 5;
  all.inputs = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  all.targets.assign(15, kIgnoredTarget);
  for (const int row : {0, 7, 10, 11, 12, 14}) {
    all.targets[row] = row;
    all.rows.push_back(row);
  }
  all.labels = 6;
  LossSum together;
  add_gradients(model, all, 6, {}, together);
  const std::vector<float> wanted = gradients_of(model);

  LossSum apart;
  for (int64_t example = 0; example < 3; ++example) {
    Batch one;
    one.examples = 1;
    one.columns = 5;
    one.inputs = {all.inputs.begin() + example * 5, all.inputs.begin() + example * 5 + 5};
    one.targets = {all.targets.begin() + example * 5, all.targets.begin() + example * 5 + 5};
    for (int32_t column = 0; column < 5; ++column) {
      if (one.targets[column] != kIgnoredTarget) one.rows.push_back(column);
    }
    one.labels = static_cast<int64_t>(one.rows.size());
    one.rows.resize(5, -1);  // padded, as a task's batches are
    add_gradients(model, one, 6, {}, apart);
  }
  const std::vector<float> got = gradients_of(model);
  REQUIRE(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(wanted[i]).epsilon(1e-4).scale(0.1));
  CHECK(apart.mean_loss() == doctest::Approx(together.mean_loss()));
  CHECK(apart.correct == together.correct);
  CHECK(apart.labels == 6);
}
