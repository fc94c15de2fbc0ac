#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/presets.h"
#include "tasks/registry.h"
#include "tasks/study/report.h"
#include "tasks/study/training_job.h"
#include "tasks/train/model_file.h"
#include "tasks/train/text_score.h"

namespace margay {
namespace {

constexpr std::array<int64_t, 4> kFactors = {1, 2, 4, 8};  // of the training length
constexpr int64_t kSmallSteps = 4000, kSmallTestTokens = int64_t{1} << 17, kPaperTestTokens = int64_t{1} << 20;
constexpr int64_t kBatchTokens = int64_t{1} << 14;
constexpr double kTrainingShare = 0.9;  // of a job's work
constexpr double kAsGood = 1.01;        // times the bits per byte at the training length

/// A model of the study at both scales.
struct LanguageStudyModel {
  std::string name;
  std::string_view small_preset, paper_preset;
  std::vector<std::string> paper_settings;  ///< key=value, over the preset
  bool softmax;  ///< attention to all tokens before, which YaRN is for: its temperature also without positions
  double cost;   ///< of a training step, as measured on a CPU
};

const std::vector<LanguageStudyModel>& models() {
  static const std::vector<LanguageStudyModel> all = {
      {"RoPE", "lm-kjv-neox-attention", "lm-pythia-14m-attention", {}, true, 1.0},
      {"NoPE", "lm-kjv-neox-nope-attention", "lm-pythia-14m-attention", {"model.position=none"}, true, 1.0},
      {"CAT + RoPE", "lm-kjv-neox-cat", "lm-pythia-14m-cat", {}, true, 1.1},
      {"CAT + NoPE", "lm-kjv-neox-nope-cat", "lm-pythia-14m-cat", {"model.position=none"}, true, 1.1},
      {"LCAT",
       "lm-kjv-lcat",
       "lm-pythia-14m-cat",
       {"model.backbone=zoology", "model.mixer=lcat", "model.position=none", "model.lcat.block_size=64",
        "model.lcat.top_k=4"},
       false,
       1.2},
      {"Mamba",
       "lm-kjv-mamba",
       "lm-pythia-14m-cat",
       {"model.backbone=zoology", "model.mixer=mamba", "model.position=none", "model.n_layers=12"},
       false,
       2.4},
  };
  return all;
}

int64_t trained_length(StudyScale scale) { return scale == StudyScale::small ? 128 : 2048; }

Config config_of(const LanguageStudyModel& model, const StudySettings& settings, int64_t seed) {
  const bool small = settings.scale == StudyScale::small;
  const std::string_view preset = small ? model.small_preset : model.paper_preset;
  Config config = parse_config(find_preset(preset).toml, preset);
  if (!small) config = with_settings(config, model.paper_settings);
  config.task.seq_len = config.model.max_seq_len = trained_length(settings.scale);
  config.task.path = !settings.text.empty() ? settings.text : small ? "data/kjv.txt" : "data/corpus";
  config.train.seed = config.task.seed = seed;
  if (small) {
    config.train.steps = kSmallSteps;
    config.train.eval_every = 500;
    config.task.test_examples = 128;
  }
  return config;
}

std::vector<std::string> columns() {
  return {"model",        "mixer",      "layers",      "d_model",    "position",   "seq_len",       "lr",
          "seed",         "batch_size", "max_steps",   "parameters", "steps",      "seconds",       "train_loss",
          "test_seq_len", "yarn_scale", "test_tokens", "test_loss",  "perplexity", "bits_per_byte", "status"};
}

std::vector<std::string> run_cells(const LanguageStudyModel& model, const Config& config, const TrainedRun& run) {
  return {model.name,
          fmt::format("{}", fmt::join(config.model.mixer, "+")),
          fmt::format("{}", config.model.n_layers),
          fmt::format("{}", config.model.d_model),
          config.model.position,
          fmt::format("{}", config.task.seq_len),
          fmt::format("{:g}", config.train.lr),
          fmt::format("{}", config.train.seed),
          fmt::format("{}", config.train.batch_size),
          fmt::format("{}", config.train.steps),
          fmt::format("{}", run.parameters),
          fmt::format("{}", run.state.step),
          fmt::format("{:.1f}", run.state.seconds),
          fmt::format("{:.4f}", run.state.train_loss)};
}

/// A length to test at, and what positions and scores are stretched by.
struct LengthTest {
  int64_t seq_len;
  double yarn_scale;
};

std::vector<LengthTest> tests_of(const LanguageStudyModel& model, int64_t trained) {
  std::vector<LengthTest> tests;
  for (const int64_t factor : kFactors) {
    tests.push_back({factor * trained, 1});
    if (model.softmax && factor > 1) tests.push_back({factor * trained, static_cast<double>(factor)});
  }
  return tests;
}

/// The configuration of a test: windows side by side over the first `tokens` tokens of the test part, so that every
/// length is tested on the same text.
Config test_config(Config config, const LengthTest& test, int64_t tokens) {
  config.task.seq_len = test.seq_len;
  config.task.stride = 0;
  config.task.test_examples = std::max<int64_t>(1, tokens / test.seq_len);
  config.model.yarn_scale = test.yarn_scale;
  return config;
}

std::vector<std::string> tested_cells(const Config& config, const std::string& checkpoint) {
  const auto task = make_task(config);
  TextScore score(config.task.seq_len, *tokenizer_of(*task));
  evaluate(load_model(checkpoint, config.model), *task, Split::test,
           std::max<int64_t>(1, kBatchTokens / config.task.seq_len), &score);
  const TokenSum total = score.total();
  return {fmt::format("{}", total.tokens), fmt::format("{:.4f}", total.mean_loss()),
          fmt::format("{:.4f}", total.perplexity()), fmt::format("{:.4f}", total.bits_per_byte()), "ok"};
}

/// Whether the text is there, and long enough for every test.
void require_text(const StudySettings& settings) {
  const Config config = config_of(models().front(), settings, settings.seed);
  std::error_code error;
  if (!std::filesystem::exists(config.task.path, error)) {
    throw DataError(
        fmt::format("the text {} does not exist: tools/quickstart.sh writes data/kjv.txt, `margay prepare` "
                    "a corpus, and --text names another",
                    quoted_path(config.task.path)));
  }
  for (const LengthTest& test : tests_of(models().front(), config.task.seq_len))
    make_task(test_config(config, test, 0));
}

std::optional<Table> run_job(const LanguageStudyModel& model, const Config& config, int64_t test_tokens,
                             const std::string& folder, JobMonitor& monitor) {
  const std::vector<LengthTest> tests = tests_of(model, config.task.seq_len);
  const auto run = train_to_end(config, folder, monitor, kTrainingShare);
  if (!run) return std::nullopt;
  Table rows(columns());
  for (size_t i = 0; i < tests.size(); ++i) {
    if (monitor.stop_requested()) return std::nullopt;
    std::vector<std::string> cells = run_cells(model, config, *run);
    cells.push_back(fmt::format("{}", tests[i].seq_len));
    cells.push_back(fmt::format("{:g}", tests[i].yarn_scale));
    const std::vector<std::string> tested =
        run->diverged ? std::vector<std::string>{"", "", "", "", "diverged"}
                      : tested_cells(test_config(config, tests[i], test_tokens), find_checkpoint(folder));
    cells.insert(cells.end(), tested.begin(), tested.end());
    rows.add(std::move(cells));
    monitor.on_progress(kTrainingShare +
                        (1 - kTrainingShare) * static_cast<double>(i + 1) / static_cast<double>(tests.size()));
  }
  return rows;
}

std::vector<StudyJob> jobs_of(const StudySettings& settings) {
  const int64_t test_tokens = settings.scale == StudyScale::small ? kSmallTestTokens : kPaperTestTokens;
  std::vector<StudyJob> jobs;
  for (const LanguageStudyModel& model : models()) {
    for (int64_t seed = settings.seed; seed < settings.seed + settings.seeds; ++seed) {
      const Config config = config_of(model, settings, seed);
      StudyJob job;
      job.name = fmt::format("{}-d{}-L{}-lr{:g}-seed{}", job_name(model.name), config.model.d_model,
                             config.task.seq_len, config.train.lr, seed);
      job.settings = fmt::format("{}\n# tested at {} times the length, on {} tokens\n", to_toml(config),
                                 fmt::join(kFactors, ", "), test_tokens);
      job.cost = model.cost;
      job.run = [model, config, test_tokens](const std::string& folder, JobMonitor& monitor) {
        return run_job(model, config, test_tokens, folder, monitor);
      };
      jobs.push_back(std::move(job));
    }
  }
  return jobs;
}

/// Bits per byte at the training length and its multiples, averaged over seeds; NaN where there is none. With `yarn`
/// the models that it is for are stretched to each length.
std::vector<double> bits(const Table& rows, const LanguageStudyModel& model, int64_t trained, bool yarn) {
  std::vector<double> result;
  for (const int64_t factor : kFactors) {
    const double scale = yarn && model.softmax ? static_cast<double>(factor) : 1;
    double sum = 0;
    int64_t count = 0;
    for (size_t row = 0; row < rows.size(); ++row) {
      if (rows.text(row, "model") != model.name || rows.text(row, "status") != "ok") continue;
      if (rows.text(row, "test_seq_len") != std::to_string(factor * trained)) continue;
      if (rows.text(row, "yarn_scale") != fmt::format("{:g}", scale)) continue;
      sum += rows.number(row, "bits_per_byte");
      ++count;
    }
    result.push_back(count > 0 ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN());
  }
  return result;
}

Panel panel_of(const Table& rows, int64_t trained, bool yarn, const Range& range) {
  Panel panel{.title = yarn ? "With YaRN" : "As trained",
              .x = {.label = "tokens of a test window", .log = true, .tight = true},
              .y = {.label = "bits per byte", .low = range.low, .high = range.high},
              .series = {}};
  for (const int64_t factor : kFactors) panel.x.ticks.push_back(static_cast<double>(factor * trained));
  panel.x.low = panel.x.ticks.front();
  panel.x.high = panel.x.ticks.back();
  for (size_t i = 0; i < models().size(); ++i) {
    panel.series.push_back({.name = models()[i].name,
                            .x = panel.x.ticks,
                            .y = bits(rows, models()[i], trained, yarn),
                            .colour = i,
                            .style = Series::Style::line_and_points});
  }
  return panel;
}

Figure figure_of(int64_t trained, const Table& rows) {
  Range range{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  for (const LanguageStudyModel& model : models()) {
    for (const bool yarn : {false, true}) {
      for (const double value : bits(rows, model, trained, yarn)) {
        if (!std::isfinite(value)) continue;
        range = {std::min(range.low, value), std::max(range.high, value)};
      }
    }
  }
  if (range.low > range.high) range = {0, 8};
  const double margin = 0.05 * std::max(0.1, range.high - range.low);
  range = {range.low - margin, range.high + margin};
  return {"Language models beyond their training length",
          fmt::format("trained on windows of {} tokens; the same text at every length", trained),
          {panel_of(rows, trained, false, range), panel_of(rows, trained, true, range)},
          2};
}

std::string bits_table(const Table& rows, int64_t trained, bool yarn) {
  std::vector<std::vector<std::string>> table{{"model"}};
  for (const int64_t factor : kFactors) table[0].push_back(fmt::format("{}", factor * trained));
  for (const LanguageStudyModel& model : models()) {
    if (yarn && !model.softmax) continue;
    table.push_back({model.name});
    for (const double value : bits(rows, model, trained, yarn))
      table.back().push_back(std::isfinite(value) ? fmt::format("{:.3f}", value) : "-");
  }
  return markdown_table(table) + '\n';
}

/// "CAT + NoPE (8x), ...": how far each model is as good as at its training length.
std::string reach(const Table& rows, int64_t trained, bool yarn) {
  std::vector<std::string> reaches;
  for (const LanguageStudyModel& model : models()) {
    if (yarn && !model.softmax) continue;
    const std::vector<double> values = bits(rows, model, trained, yarn);
    size_t good = 0;
    while (good < values.size() && values[good] <= kAsGood * values[0]) ++good;
    if (good > 0) reaches.push_back(fmt::format("{} ({}x)", model.name, kFactors[good - 1]));
  }
  return reaches.empty() ? "none yet" : fmt::format("{}", fmt::join(reaches, ", "));
}

std::string findings_of(const StudySettings& settings, const Table& rows) {
  const int64_t trained = trained_length(settings.scale);
  const Config config = config_of(models().front(), settings, settings.seed);
  std::string text = fmt::format(
      "Pythia's attention with rotary positions (RoPE) and without any (NoPE), both with CAT's filters of 21 taps, "
      "landmark CAT and Mamba, trained on windows of {} tokens and tested on longer ones. The paper finds that filters "
      "make up for positions, help RoPE too, and keep the loss down beyond the training length.\n\n",
      trained);
  text += "Bits per byte by the length of the test window, as trained:\n\n" + bits_table(rows, trained, false);
  text +=
      "With YaRN, its scale the factor of the length: positions stretched and scores sharpened for RoPE, scores "
      "alone for NoPE:\n\n" +
      bits_table(rows, trained, true);
  text += fmt::format("Within {:.0f} % of the loss at the training length, as trained: {}; with YaRN: {}.\n\n",
                      100 * (kAsGood - 1), reach(rows, trained, false), reach(rows, trained, true));
  text += fmt::format(
      "Text `{}`, {} steps of {} windows. Every length is tested on the same first {} tokens of the "
      "test part, in windows side by side, so that a model that uses a longer window well gains by it.\n",
      config.task.path, config.train.steps, config.train.batch_size,
      settings.scale == StudyScale::small ? kSmallTestTokens : kPaperTestTokens);
  return text + '\n' + diverged_runs(rows, "left out");
}

StudyPlan plan(const StudySettings& settings) {
  return {.columns = columns(),
          .jobs = jobs_of(settings),
          .figure = [trained = trained_length(settings.scale)](const Table& rows) { return figure_of(trained, rows); },
          .findings = [settings](const Table& rows) { return findings_of(settings, rows); },
          .check = [settings] { require_text(settings); }};
}

}  // namespace

extern const Study kLmLengthStudy;
constinit const Study kLmLengthStudy = {
    .name = "lm-length",
    .summary = "Language models trained at one length and tested at 1 to 8 times it (figure 1, right)",
    .plan = plan,
};

}  // namespace margay
