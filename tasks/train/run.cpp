#include "tasks/train/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/parallel.h"
#include "tasks/train/folders.h"
#include "tasks/train/model_file.h"
#include "tasks/train/process_memory.h"
#include "tasks/train/report.h"

namespace margay {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kMetricsLines = 2000;  // of a whole run, tests not counted

/// "1 layer of cat · d_model 64 · 541 k parameters · mqar, 64 tokens · lr 0.01 · 400 steps"
std::string describe_run(const Trainer& trainer) {
  const Config& config = trainer.config();
  const auto parameters = static_cast<double>(trainer.model().parameter_count());
  return fmt::format(
      "{} layer{} of {} · d_model {} · {} parameters · {}, {} tokens · lr {:g} · {} steps", config.model.n_layers,
      config.model.n_layers == 1 ? "" : "s", fmt::join(config.model.mixer, ", "), config.model.d_model,
      parameters < 1e6 ? fmt::format("{:.0f} k", parameters / 1e3) : fmt::format("{:.1f} M", parameters / 1e6),
      config.task.name, config.task.seq_len, config.train.lr, trainer.state().step);
}

/// Keeps the files of a run up to date.
class Recorder final : public TrainObserver {
 public:
  Recorder(const LockedFolder& folder, const Trainer& trainer, TrainObserver& next)
      : folder_(folder),
        checkpoints_(folder.path()),
        log_(folder.file("metrics.jsonl"), trainer.state().step),
        log_every_(std::max<int64_t>(1, (trainer.total_steps() + kMetricsLines - 1) / kMetricsLines)),
        next_(next) {}

  void on_start(const Trainer& trainer) override { next_.on_start(trainer); }
  void on_step(const Trainer& trainer, const Metrics& metrics) override {
    if (metrics.accuracy || metrics.step % log_every_ == 0) log_.append(metrics);
    next_.on_step(trainer, metrics);
  }
  void on_checkpoint(Trainer& trainer) override {
    log_.sync();
    checkpoints_.add(trainer.state().step, [&](const std::string& folder) { trainer.save(folder); });
    write_report(trainer);
    next_.on_checkpoint(trainer);
  }
  bool stop_requested() override { return next_.stop_requested(); }

  void write_report(const Trainer& trainer) const {
    RunCurves curves{run_name(folder_.path()), read_metrics(folder_.file("metrics.jsonl"))};
    write_file_atomically(folder_.file("report.svg"), to_svg(run_figure(curves, describe_run(trainer))));
  }

 private:
  const LockedFolder& folder_;
  CheckpointStore checkpoints_;
  MetricsLog log_;
  int64_t log_every_;
  TrainObserver& next_;
};

void write_summary(const LockedFolder& folder, const Trainer& trainer) {
  const TrainState& state = trainer.state();
  Json summary{{"steps", state.step},
               {"epochs", state.epoch},
               {"tokens", state.tokens},
               {"seconds", state.seconds},
               {"loss", state.test ? Json(state.test->loss) : Json()},
               {"accuracy", state.test ? Json(state.test->accuracy) : Json()},
               {"train_loss", state.train_loss},
               {"tokens_per_second", static_cast<double>(state.tokens) / state.train_seconds},
               {"peak_rss_bytes", peak_rss_bytes()},
               {"parameters", trainer.model().parameter_count()},
               {"threads", num_threads()}};
  write_file_atomically(folder.file("summary.json"), summary.dump(2) + '\n');
}

/// Whether the summary is that of the run's last step.
bool has_summary(const LockedFolder& folder, const TrainState& state) {
  std::ifstream file(folder.file("summary.json"));
  const Json summary = file ? Json::parse(file, nullptr, false) : Json();
  return summary.is_object() && summary.value("steps", Json()) == state.step;
}

}  // namespace

RunEnd train_in_folder(const Config& config, const RunOptions& options, TrainObserver& observer) {
  Trainer trainer(config, options.device);  // first: a configuration that does not fit leaves no folder behind
  const LockedFolder folder(options.folder, "training");
  const std::optional<std::string> checkpoint = CheckpointStore(folder.path()).newest();
  if (checkpoint && !options.resume) {
    throw ConfigError(fmt::format("{} holds a run already: --resume goes on with it", quoted_path(options.folder)));
  }
  if (checkpoint) trainer.restore(*checkpoint);
  if (checkpoint && trainer.finished() && has_summary(folder, trainer.state())) return RunEnd::was_finished;
  write_file_atomically(folder.file("config.toml"), to_toml(config));
  save_tokenizer(folder.path(), trainer.task().tokenizer_json());
  Recorder recorder(folder, trainer, observer);
  if (!train(trainer, recorder)) return RunEnd::stopped;
  recorder.write_report(trainer);  // again: a run that is resumed may have been killed before its last report
  write_summary(folder, trainer);
  return RunEnd::finished;
}

}  // namespace margay
