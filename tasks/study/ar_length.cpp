#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>

#include "tasks/study/report.h"
#include "tasks/study/training_job.h"

namespace margay {
namespace {

constexpr int64_t kTrainLength = 128, kWidth = 128;
constexpr std::array<int64_t, 7> kTestLengths = {64, 128, 256, 512, 1024, 2048, 4096};
constexpr int64_t kSmallSteps = 500, kSmallShortest = 8;
constexpr double kGood = 0.99;

const std::vector<StudyModel>& models() {
  static const std::vector<StudyModel> all = {
      {"CAT", {"model.mixer=cat"}, 4e-3},
      {"Attention NoPE", {"model.mixer=attention", "model.n_layers=2"}, 2e-3},
      {"Attention RoPE", {"model.mixer=attention", "model.n_layers=2", "model.position=rope"}, 2e-3},
      {"Attention learned", {"model.mixer=attention", "model.n_layers=2", "model.position=learned"}, 2e-3},
      {"Mamba", {"model.mixer=mamba", "model.n_layers=2"}, 4e-3},
      {"Hyena", {"model.mixer=hyena", "model.n_layers=2", "model.max_seq_len=4096"}, 4e-3},
      {"S4D", {"model.mixer=s4d", "model.n_layers=2"}, 4e-3},
      {"Linear attention", {"model.mixer=linear_attention", "model.n_layers=2"}, 4e-3},
  };
  return all;
}

Config base_config(StudyScale scale) {
  Config config = with_settings({}, {"task.name=ar", "task.form=free", "task.vocab_size=256", "model.vocab_size=256"});
  config.task.seq_len = config.model.max_seq_len = kTrainLength;
  config.model.d_model = kWidth;
  if (scale == StudyScale::paper) {
    config.model.mlp = "identity";
    config.model.dropout_embed = 0.1;
    config.train.decay_groups = "zoology";
    config.train.batch_size = 512;
    return config;
  }
  config.task.min_seq_len = kSmallShortest;
  config.task.train_examples = 0;
  config.task.test_examples = 512;
  config.train.steps = kSmallSteps;
  config.train.grad_clip = 1.0;
  config.train.eval_every = 100;
  return config;
}

std::vector<StudyJob> jobs_of(const StudySettings& settings) {
  std::vector<StudyJob> jobs;
  for (const StudyModel& model : models()) {
    for (const double lr : learning_rates(model, settings.scale)) {
      for (int64_t seed = settings.seed; seed < settings.seed + settings.seeds; ++seed) {
        Config config = with_settings(base_config(settings.scale), model.settings);
        config.train.lr = lr;
        config.train.seed = config.task.seed = seed;
        if (settings.scale == StudyScale::paper && config.model.mixer.front() == "attention")
          config.model.dropout_attention = 0.1;
        jobs.push_back(training_job({model, config, {kTestLengths.begin(), kTestLengths.end()}}));
      }
    }
  }
  return jobs;
}

/// All lengths of the learning rate that is best at the training length: nothing is chosen by a longer one.
std::vector<double> accuracies(const Table& rows, const StudyModel& model) {
  const double lr = best_accuracy(rows, {{"model", model.name}, {"test_seq_len", std::to_string(kTrainLength)}}).lr;
  std::vector<double> result;
  for (const int64_t length : kTestLengths) {
    result.push_back(
        best_accuracy(
            rows, {{"model", model.name}, {"test_seq_len", std::to_string(length)}, {"lr", fmt::format("{:g}", lr)}})
            .accuracy);
  }
  return result;
}

Figure figure_of(const Table& rows) {
  Panel panel{.title = "Accuracy at other lengths than the one trained at",
              .x = {.label = "sequence length of the test",
                    .log = true,
                    .tight = true,
                    .low = kTestLengths.front(),
                    .high = kTestLengths.back()},
              .y = {.label = "accuracy", .percent = true, .low = 0, .high = 1},
              .series = {}};
  panel.x.ticks.assign(kTestLengths.begin(), kTestLengths.end());
  for (size_t i = 0; i < models().size(); ++i) {
    panel.series.push_back({.name = models()[i].name,
                            .x = panel.x.ticks,
                            .y = accuracies(rows, models()[i]),
                            .colour = i,
                            .style = Series::Style::line_and_points});
  }
  panel.series.push_back({.name = "trained here",
                          .x = {kTrainLength, kTrainLength},
                          .y = {0, 1},
                          .colour = 6,
                          .style = Series::Style::dashed_line});
  return {"Associative recall: generalisation to other lengths",
          fmt::format("one layer of CAT, two of the others, width {}", kWidth),
          {panel}};
}

std::string findings_of(StudyScale scale, const Table& rows) {
  std::string text =
      "A sequence of random tokens ends with one that occurred once before; what followed it there is to be predicted. "
      "The paper finds that CAT alone solves this at lengths beyond the training's.\n\n";
  std::vector<std::vector<std::string>> table{{"model"}};
  for (const int64_t length : kTestLengths) table[0].push_back(std::to_string(length));
  std::vector<std::string> good;
  for (const StudyModel& model : models()) {
    table.push_back({model.name});
    int64_t reach = 0;
    const std::vector<double> shares = accuracies(rows, model);
    for (size_t i = 0; i < shares.size(); ++i) {
      table.back().push_back(percent_or_dash(shares[i]));
      if (shares[i] >= kGood) reach = kTestLengths[i];
    }
    if (reach >= kTrainLength) good.push_back(fmt::format("{} (to {})", model.name, reach));
  }
  text += markdown_table(table) + '\n';
  text += fmt::format("At least {:.0f} % right at the training length: {}. A dash: learned positions end at {}.\n\n",
                      100 * kGood, good.empty() ? "none" : fmt::format("{}", fmt::join(good, ", ")), kTrainLength);
  if (scale == StudyScale::small) {
    text += fmt::format(
        "Small scale: vocabulary 256, fresh examples for ever, batches of 64, {} steps for every model, one learning "
        "rate "
        "each. Every batch has a length of its own, from {} to {} tokens: CAT then learns in 150 steps what at {} "
        "tokens "
        "alone takes about 1000.",
        kSmallSteps, kSmallShortest, kTrainLength, kTrainLength);
  } else {
    text +=
        "Vocabulary 256, the same 100,000 training examples for 64 epochs, batches of 512, the best of four learning "
        "rates at the training length.";
  }
  text +=
      " Tests beyond the training length have about a quarter of a million tokens: 256 examples at 1024 tokens, 64 at "
      "4096. Hyena's filter spans 4096 tokens, of which training sees the first 128.\n";
  text += "\n| model | settings | learning rate |\n|---|---|---|\n";
  for (const StudyModel& model : models()) {
    text += fmt::format("| {} | `{}` | {} |\n", model.name, fmt::join(model.settings, " "),
                        fmt::join(learning_rates(model, scale), ", "));
  }
  return text + '\n' + diverged_runs(rows, "counted as 0");
}

StudyPlan plan(const StudySettings& settings) {
  return {.columns = training_columns(),
          .jobs = jobs_of(settings),
          .figure = figure_of,
          .findings = [scale = settings.scale](const Table& rows) { return findings_of(scale, rows); }};
}

}  // namespace

extern const Study kArLengthStudy;
constinit const Study kArLengthStudy = {
    .name = "ar-length",
    .summary = "Associative recall, trained at 128 tokens and tested at 64 to 4096 (figure 1, left)",
    .plan = plan,
};

}  // namespace margay
