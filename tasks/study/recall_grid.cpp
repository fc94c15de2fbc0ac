#include "tasks/study/recall_grid.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "tasks/study/report.h"

namespace margay {
namespace {

struct Length {
  int64_t seq_len, pairs;
  int64_t paper_batch;
};
constexpr std::array<Length, 4> kLengths = {{{64, 4, 512}, {128, 8, 512}, {256, 16, 256}, {512, 64, 128}}};
constexpr size_t kSmallLengths = 3;  // the first of them
constexpr std::array<int64_t, 3> kWidths = {32, 64, 128};
constexpr double kTie = 0.005;  // accuracies that differ by less are equal

// Of the small scale.
constexpr int64_t kSmallVocabulary = 1024;
constexpr int64_t kBatchTokens = 4096;  // of every length: so every step has as many labels
constexpr int64_t kTestTokens = 32768;

std::span<const Length> lengths_of(StudyScale scale) {
  return std::span(kLengths).first(scale == StudyScale::small ? kSmallLengths : kLengths.size());
}

/// The settings of the public benchmark behind the paper's figure (spelled out in report.md), or what is quick.
Config base_config(const RecallGrid& grid, StudyScale scale, const Length& length) {
  Config config = with_settings({}, grid.task_settings);
  config.task.name = grid.task;
  config.task.seq_len = config.model.max_seq_len = length.seq_len;
  config.task.num_kv_pairs = length.pairs;
  config.train.stop_accuracy = 0.99;
  if (scale == StudyScale::paper) {
    config.model.mlp = "identity";
    config.model.dropout_embed = 0.1;
    config.train.decay_groups = "zoology";
    config.train.batch_size = length.paper_batch;
    return config;
  }
  config.model.vocab_size = config.task.vocab_size = kSmallVocabulary;
  config.task.train_examples = 0;
  config.task.test_examples = kTestTokens / length.seq_len;
  config.train.batch_size = kBatchTokens / length.seq_len;
  config.train.steps = grid.small_steps;
  config.train.grad_clip = 1.0;
  config.train.eval_every = 50;
  return config;
}

std::vector<StudyModel> models_of(const RecallGrid& grid, StudyScale scale) {
  std::vector<StudyModel> models = grid.models;
  if (scale == StudyScale::small) models.resize(std::min(models.size(), grid.small_models));
  return models;
}

std::vector<StudyJob> jobs_of(const RecallGrid& grid, const StudySettings& settings,
                              const std::vector<StudyModel>& models) {
  std::vector<StudyJob> jobs;
  for (const int64_t width : kWidths) {
    for (const Length& length : lengths_of(settings.scale)) {
      for (const StudyModel& model : models) {
        for (const double lr : learning_rates(model, settings.scale)) {
          for (int64_t seed = settings.seed; seed < settings.seed + settings.seeds; ++seed) {
            Config config = with_settings(base_config(grid, settings.scale, length), model.settings);
            config.model.d_model = width;
            config.train.lr = lr;
            config.train.seed = config.task.seed = seed;
            if (settings.scale == StudyScale::paper && config.model.mixer.front() == "attention")
              config.model.dropout_attention = 0.1;
            jobs.push_back(training_job({model, config}));
          }
        }
      }
    }
  }
  return jobs;
}

BestAccuracy cell(const Table& rows, const StudyModel& model, int64_t width, int64_t seq_len) {
  return best_accuracy(
      rows, {{"model", model.name}, {"d_model", std::to_string(width)}, {"test_seq_len", std::to_string(seq_len)}});
}

Figure figure_of(const RecallGrid& grid, StudyScale scale, const std::vector<StudyModel>& models, const Table& rows) {
  const std::span<const Length> lengths = lengths_of(scale);
  Figure figure{grid.title,
                "test accuracy of the best learning rate; one layer of CAT and LinCAT, two of the others",
                {},
                kWidths.size()};
  for (const int64_t width : kWidths) {
    Panel panel{.title = fmt::format("width {}", width),
                .x = {.label = "sequence length",
                      .log = true,
                      .tight = true,
                      .low = static_cast<double>(lengths.front().seq_len),
                      .high = static_cast<double>(lengths.back().seq_len)},
                .y = {.label = "accuracy", .percent = true, .low = 0, .high = 1},
                .series = {}};
    for (const Length& length : lengths) panel.x.ticks.push_back(static_cast<double>(length.seq_len));
    for (size_t i = 0; i < models.size(); ++i) {
      Series series{.name = models[i].name, .colour = i, .style = Series::Style::line_and_points};
      for (const Length& length : lengths) {
        series.x.push_back(static_cast<double>(length.seq_len));
        series.y.push_back(cell(rows, models[i], width, length.seq_len).accuracy);
      }
      panel.series.push_back(std::move(series));
    }
    figure.panels.push_back(std::move(panel));
  }
  return figure;
}

/// In how many cells the first model is the best or as good as the best.
std::string ordering(StudyScale scale, const std::vector<StudyModel>& models, const Table& rows) {
  int64_t cells = 0, won = 0;
  std::vector<std::string> lost;
  for (const int64_t width : kWidths) {
    for (const Length& length : lengths_of(scale)) {
      const double first = cell(rows, models.front(), width, length.seq_len).accuracy;
      if (!std::isfinite(first)) continue;
      ++cells;
      double best = first;
      for (const StudyModel& model : models) {
        const double accuracy = cell(rows, model, width, length.seq_len).accuracy;
        if (std::isfinite(accuracy)) best = std::max(best, accuracy);
      }
      if (first >= best - kTie) {
        ++won;
      } else {
        lost.push_back(fmt::format("width {}, length {}", width, length.seq_len));
      }
    }
  }
  std::string text = fmt::format("{} is best, or within {} % of the best, in {} of {} cells", models.front().name,
                                 100 * kTie, won, cells);
  return lost.empty() ? text + ".\n" : fmt::format("{}; not at {}.\n", text, fmt::join(lost, "; "));
}

std::string findings_of(const RecallGrid& grid, StudyScale scale, const std::vector<StudyModel>& models,
                        const Table& rows) {
  std::string text = grid.reading + "\n\n" + ordering(scale, models, rows) + '\n';
  for (const int64_t width : kWidths) {
    std::vector<std::vector<std::string>> table{{fmt::format("width {}", width)}};
    for (const Length& length : lengths_of(scale))
      table[0].push_back(fmt::format("{} tokens, {} pairs", length.seq_len, length.pairs));
    for (const StudyModel& model : models) {
      std::vector<std::string> line{model.name};
      for (const Length& length : lengths_of(scale))
        line.push_back(percent_or_dash(cell(rows, model, width, length.seq_len).accuracy));
      table.push_back(std::move(line));
    }
    text += markdown_table(table) + '\n';
  }
  if (scale == StudyScale::small) {
    text += fmt::format(
        "Small scale: vocabulary {}, fresh examples for ever, {} tokens a batch at every length, at most {} steps, one "
        "learning rate for each model, tried out at width 64 and 64 tokens. A test every 50 steps ends a run that "
        "reaches 99 %. What has not learned the task by then may well learn it with more steps: this compares what "
        "can be learned quickly.\n",
        kSmallVocabulary, kBatchTokens, grid.small_steps);
    std::vector<std::string> left_out;
    for (size_t i = models.size(); i < grid.models.size(); ++i) left_out.push_back(grid.models[i].name);
    text +=
        fmt::format("Left out, being slow on a CPU, and part of the paper's scale: {}.\n", fmt::join(left_out, ", "));
  } else {
    text +=
        "Settings of the benchmark: vocabulary 8192, the same 100,000 training and 3,000 test examples for 64 epochs, "
        "batches of 512, 512, 256 and 128 by length, AdamW with weight decay 0.1 on everything, the identity in place "
        "of the MLP, embeddings dropped with 0.1. The cosine falls with every step, not every epoch.\n";
  }
  text += "\n| model | settings | learning rate |\n|---|---|---|\n";
  for (const StudyModel& model : models) {
    text += fmt::format("| {} | `{}` | {} |\n", model.name, fmt::join(model.settings, " "),
                        fmt::join(learning_rates(model, scale), ", "));
  }
  return text + '\n' + diverged_runs(rows, "counted as 0");
}

}  // namespace

StudyPlan recall_plan(const RecallGrid& grid, const StudySettings& settings) {
  const std::vector<StudyModel> models = models_of(grid, settings.scale);
  return {
      .columns = training_columns(),
      .jobs = jobs_of(grid, settings, models),
      .figure = [grid, models,
                 scale = settings.scale](const Table& rows) { return figure_of(grid, scale, models, rows); },
      .findings = [grid, models,
                   scale = settings.scale](const Table& rows) { return findings_of(grid, scale, models, rows); },
  };
}

}  // namespace margay
