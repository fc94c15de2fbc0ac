#include "tasks/study/training_job.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <map>

#include "engine/error.h"
#include "tasks/registry.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/model_file.h"
#include "tasks/train/run.h"

namespace margay {
namespace {

constexpr int64_t kTestTokens = int64_t{1} << 18;  // of a test beyond the training length: 64 examples of 4096
constexpr int64_t kBatchTokens = int64_t{1} << 14;
constexpr double kTrainingShare = 0.8;  // of the work, where longer sequences are tested afterwards

/// Passes on to a job's monitor how far its training is.
class Watcher final : public TrainObserver {
 public:
  Watcher(JobMonitor& monitor, double share) : monitor_(monitor), share_(share) {}
  void on_start(const Trainer& trainer) override { parameters_ = trainer.model().parameter_count(); }
  void on_step(const Trainer& trainer, const Metrics& metrics) override {
    state_ = trainer.state();
    monitor_.on_progress(share_ * static_cast<double>(metrics.step) / static_cast<double>(trainer.total_steps()));
  }
  bool stop_requested() override { return monitor_.stop_requested(); }

  /// Where training stood after its last whole step.
  const TrainState& state() const { return state_; }
  int64_t parameters() const { return parameters_; }

 private:
  JobMonitor& monitor_;
  double share_;
  TrainState state_;
  int64_t parameters_ = 0;
};

/// Arithmetic of all steps, in rough units: layers by tokens, and the head by labels.
double cost_of(const Config& config) {
  const ModelConfig& model = config.model;
  const auto tokens = static_cast<double>(config.task.seq_len), width = static_cast<double>(model.d_model);
  const std::string& mixer = model.mixer.back();
  const double weight = mixer == "mamba" ? 4 : mixer == "rwkv" || mixer == "h3" ? 2 : 1;  // as measured on a CPU
  const double layers = static_cast<double>(model.n_layers) * weight * tokens * (8 * width * width + tokens * width);
  const double labels = config.task.name == "ar" ? 1 : static_cast<double>(config.task.num_kv_pairs);
  const double head = labels * static_cast<double>(model.vocab_size) * width;
  const int64_t examples = config.train.steps > 0 ? config.train.steps * config.train.batch_size
                                                  : config.train.epochs * config.task.train_examples;
  return static_cast<double>(examples) * (layers + head);
}

/// Everything but what a test says.
std::vector<std::string> run_cells(const StudyRun& run, const TrainState& state, int64_t parameters) {
  const auto& [model, task, train] = run.config;
  const int64_t steps_per_epoch = (task.train_examples + train.batch_size - 1) / train.batch_size;
  return {run.model.name,
          fmt::format("{}", fmt::join(model.mixer, "+")),
          fmt::format("{}", model.n_layers),
          fmt::format("{}", model.d_model),
          model.position,
          task.name,
          fmt::format("{}", task.vocab_size),
          fmt::format("{}", task.seq_len),
          fmt::format("{}", task.num_kv_pairs),
          fmt::format("{:g}", train.lr),
          fmt::format("{}", train.seed),
          fmt::format("{}", train.batch_size),
          fmt::format("{}", train.steps > 0 ? train.steps : train.epochs * steps_per_epoch),
          fmt::format("{}", parameters),
          fmt::format("{}", state.step),
          fmt::format("{:.1f}", state.seconds),
          fmt::format("{:.4f}", state.train_loss)};
}

/// A row's last cells.
std::vector<std::string> test_cells(int64_t seq_len, int64_t examples, double loss, double accuracy) {
  return {fmt::format("{}", seq_len), fmt::format("{}", examples), fmt::format("{:.4f}", loss),
          fmt::format("{:.4f}", accuracy), "ok"};
}
std::vector<std::string> no_test_cells(int64_t seq_len, std::string status) {
  return {fmt::format("{}", seq_len), "", "", "", std::move(status)};
}

/// Tests a trained model at another length than its own, on examples of about kTestTokens tokens.
Evaluation test_at(const LanguageModel& model, TaskConfig config, int64_t seq_len) {
  config.seq_len = seq_len;
  config.min_seq_len = 0;
  config.test_examples = std::clamp<int64_t>(kTestTokens / seq_len, 1, config.test_examples);
  const std::unique_ptr<Task> task = make_task(config);
  return evaluate(model, *task, Split::test, std::max<int64_t>(1, kBatchTokens / seq_len));
}

std::optional<Table> run_training(const StudyRun& run, const std::string& folder, JobMonitor& monitor) {
  const Config& config = run.config;
  const std::vector<int64_t> lengths =
      run.test_seq_lens.empty() ? std::vector<int64_t>{config.task.seq_len} : run.test_seq_lens;
  const auto trained = train_to_end(config, folder, monitor, lengths.size() > 1 ? kTrainingShare : 1);
  if (!trained) return std::nullopt;
  const TrainState& state = trained->state;
  const std::vector<std::string> cells = run_cells(run, state, trained->parameters);
  Table rows(training_columns());
  const auto add = [&](std::vector<std::string> row, const std::vector<std::string>& test) {
    row.insert(row.end(), test.begin(), test.end());
    rows.add(std::move(row));
  };
  if (trained->diverged) {
    for (const int64_t length : lengths) add(cells, no_test_cells(length, "diverged"));
    return rows;
  }
  const LanguageModel model = load_model(find_checkpoint(folder), config.model);
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (monitor.stop_requested()) return std::nullopt;
    const int64_t length = lengths[i];
    if (length == config.task.seq_len && state.test) {
      add(cells, test_cells(length, config.task.test_examples, state.test->loss, state.test->accuracy));
    } else if (config.model.position == "learned" && length > config.model.max_seq_len) {
      add(cells, no_test_cells(length, "too long"));
    } else {
      const Evaluation test = test_at(model, config.task, length);
      add(cells, test_cells(length, test.examples, test.loss, test.accuracy));
    }
    monitor.on_progress(kTrainingShare +
                        (1 - kTrainingShare) * static_cast<double>(i + 1) / static_cast<double>(lengths.size()));
  }
  return rows;
}

bool matches(const Table& rows, size_t row, const Match& match) {
  return std::all_of(match.begin(), match.end(),
                     [&](const auto& wanted) { return rows.text(row, wanted.first) == wanted.second; });
}

}  // namespace

std::string job_name(std::string_view text) {
  std::string name;
  for (const char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (plain) {
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  if (!name.empty() && name.back() == '-') name.pop_back();
  return name;
}

std::optional<TrainedRun> train_to_end(const Config& config, const std::string& folder, JobMonitor& monitor,
                                       double share) {
  Watcher watcher(monitor, share);
  try {
    if (train_in_folder(config, {.folder = folder, .resume = true}, watcher) == RunEnd::stopped) return std::nullopt;
  } catch (const DivergedError&) {
    return TrainedRun{watcher.state(), watcher.parameters(), true};
  }
  int64_t parameters = 0;
  for (const ParameterShape& parameter : parameter_shapes(config.model)) parameters += parameter.shape.numel();
  return TrainedRun{load_state(find_checkpoint(folder)), parameters, false};
}

std::vector<std::string> training_columns() {
  return {"model",         "mixer",      "layers",       "d_model", "position",   "task",
          "vocab_size",    "seq_len",    "num_kv_pairs", "lr",      "seed",       "batch_size",
          "max_steps",     "parameters", "steps",        "seconds", "train_loss", "test_seq_len",
          "test_examples", "test_loss",  "accuracy",     "status"};
}

StudyJob training_job(const StudyRun& run) {
  const Config& config = run.config;
  StudyJob job;
  job.name = fmt::format("{}-d{}-L{}-lr{:g}-seed{}", job_name(run.model.name), config.model.d_model,
                         config.task.seq_len, config.train.lr, config.train.seed);
  job.settings = fmt::format("{}\n# tested at {}\n", to_toml(config), fmt::join(run.test_seq_lens, ", "));
  job.cost = cost_of(config);
  job.run = [run](const std::string& folder, JobMonitor& monitor) { return run_training(run, folder, monitor); };
  return job;
}

std::vector<double> learning_rates(const StudyModel& model, StudyScale scale) {
  if (scale == StudyScale::small) return {model.lr};
  return {1e-4, 4.64e-4, 2.15e-3, 1e-2};
}

Config with_settings(Config config, const std::vector<std::string>& settings) {
  for (const std::string& setting : settings) apply_override(config, setting);
  return config;
}

BestAccuracy best_accuracy(const Table& rows, const Match& match) {
  struct Sum {
    double accuracy = 0;
    int64_t count = 0;
  };
  std::map<double, Sum> by_lr;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (!matches(rows, row, match)) continue;
    const bool diverged = rows.text(row, "status") == "diverged";
    const double accuracy = diverged ? 0 : rows.number(row, "accuracy");
    if (!std::isfinite(accuracy)) continue;
    Sum& sum = by_lr[rows.number(row, "lr")];
    sum.accuracy += accuracy;
    ++sum.count;
  }
  BestAccuracy best{std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN()};
  for (const auto& [lr, sum] : by_lr) {
    const double mean = sum.accuracy / static_cast<double>(sum.count);
    if (!(best.accuracy >= mean)) best = {mean, lr};
  }
  return best;
}

std::string diverged_runs(const Table& rows, std::string_view how) {
  std::vector<std::string> names;
  for (size_t row = 0; row < rows.size(); ++row) {
    const std::string& name = rows.text(row, "run");
    if (rows.text(row, "status") == "diverged" && (names.empty() || names.back() != name)) names.push_back(name);
  }
  return names.empty() ? "" : fmt::format("Diverged, and {}: {}.\n", how, fmt::join(names, ", "));
}

}  // namespace margay
