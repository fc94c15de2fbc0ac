#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "engine/atomic_file.h"
#include "engine/autograd.h"
#include "engine/error.h"
#include "tasks/presets.h"
#include "tasks/train/profile.h"
#include "tasks/train/run.h"
#include "tools/margay/progress.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kStepsBeforeProfile = 5;  // memory is fresh, caches are cold

struct TrainOptions {
  std::string source;
  std::vector<std::string> overrides;
  std::string folder;
  bool resume = false, quiet = false, anomaly = false;
  std::optional<int64_t> seed;
  std::string profile;
  int64_t profile_steps = 20;
  Device device;
};

bool parse(const Arguments& arguments, TrainOptions& options) {
  CommandLine line("train",
                   "Trains a model and keeps everything about it in a folder, from which it can go on at any time.");
  line.argument("PRESET|CONFIG.toml", options.source, "a name of `margay list presets`, or a file");
  line.arguments("key=value", options.overrides, "changes of the configuration, as model.d_model=128");
  line.option("--out DIR", options.folder, "the run's folder [runs/PRESET, runs/PRESET-2, ...]");
  line.flag("--resume", options.resume, "go on from the last checkpoint, if there is one");
  line.seed([&](int64_t seed) { options.seed = seed; }, "train.seed: initial weights, dropout, order of examples");
  line.device_and_threads(options.device);
  line.flag("--quiet", options.quiet, "print errors only");
  line.flag("--anomaly", options.anomaly, "stop at the first op that makes a NaN or infinity, and name it (slower)");
  line.option("--profile FILE", options.profile,
              "write where time and memory of some steps go: a trace for ui.perfetto.dev; prints a table of ops");
  line.option("--profile-steps N", options.profile_steps, 1, "steps of the profile, after five others [20]");
  line.example("margay train mqar-64-cat", "into runs/mqar-64-cat");
  line.example("margay train mqar-64-cat train.lr=4e-3 model.cat.conv_width=4 --out runs/wider", "");
  line.example("margay train mqar-64-cat --profile trace.json train.steps=25", "what is slow, and what takes memory?");
  line.example("margay train mqar-64-cat --out runs/mqar-64-cat --resume", "go on with what Ctrl-C or a crash stopped");
  return line.parse(arguments);
}

bool is_free(const std::string& folder) {
  std::error_code error;
  return !fs::exists(folder, error) || fs::is_empty(folder, error);
}

/// runs/NAME, runs/NAME-2 ...: the first that is not taken, or to resume the last that is.
std::string default_folder(const std::string& source, bool resume) {
  const std::string base = "runs/" + fs::path(source).stem().string();
  std::string taken;
  for (int64_t i = 1;; ++i) {
    const std::string folder = i == 1 ? base : fmt::format("{}-{}", base, i);
    if (is_free(folder)) return resume && !taken.empty() ? taken : folder;
    taken = folder;
  }
}

std::string result_line(RunEnd end, const TrainState& state, const std::string& folder) {
  if (end == RunEnd::was_finished) return fmt::format("{} is finished already", folder);
  const std::string steps = with_commas(state.step);
  if (end == RunEnd::stopped)
    return fmt::format("stopped at step {}; --resume --out {} goes on from there", steps, folder);
  const std::string test =
      state.test ? fmt::format(", test loss {:.4f}, test accuracy {}", state.test->loss, percent(state.test->accuracy))
                 : "";
  return fmt::format("{} steps in {:.1f} s{}; see {}/report.svg", steps, state.seconds, test, folder);
}

int run(const Arguments& arguments) {
  TrainOptions options;
  if (!parse(arguments, options)) return 0;
  Config config = preset_or_file(options.source);
  for (const std::string& assignment : options.overrides) apply_override(config, assignment);
  if (options.seed) config.train.seed = *options.seed;
  if (options.folder.empty()) options.folder = default_folder(options.source, options.resume);

  std::optional<AnomalyMode> anomaly;
  if (options.anomaly) anomaly.emplace();
  note_stop_signals();
  Progress progress(fs::path(options.source).stem().string(), options.folder, options.quiet);
  std::optional<ProfiledTraining> profiled;
  if (!options.profile.empty()) {
    write_file_atomically(options.profile, "");  // a path that cannot be written is known now, not after the training
    profiled.emplace(progress, kStepsBeforeProfile, options.profile_steps);
  }
  TrainObserver& observer = profiled ? static_cast<TrainObserver&>(*profiled) : progress;
  const RunEnd end = train_in_folder(config, {options.folder, options.resume, options.device}, observer);
  progress.finish(result_line(end, progress.state(), options.folder));
  if (profiled && (end == RunEnd::finished || profiled->has_begun())) {
    const Profile profile = profiled->finish();
    write_file_atomically(options.profile, to_chrome_trace(profile));
    if (!options.quiet) print_out(to_text(profile));
  }
  return end == RunEnd::stopped ? 128 + stop_signal() : 0;
}

}  // namespace

extern const Verb kTrain;
constinit const Verb kTrain = {"train", "train a model, or go on training it", run};

}  // namespace margay::cli
