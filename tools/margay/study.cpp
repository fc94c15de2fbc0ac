#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "engine/error.h"
#include "tasks/study/runner.h"
#include "tools/margay/line_display.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"
#include "tools/margay/version.h"

namespace margay::cli {
namespace {

struct StudyArguments {
  std::string name, scale = "small", folder;
  StudySettings settings;
  int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  bool keep_checkpoints = false, dry_run = false, quiet = false;
};

bool parse(const Arguments& words, StudyArguments& arguments) {
  CommandLine line(
      "study",
      "Makes a figure of the paper: trains or draws all that is in it, keeps every run, and goes on where it "
      "stopped.");
  line.argument("NAME", arguments.name, "a name of `margay list studies`");
  line.option("--scale SCALE", arguments.scale,
              "small: minutes on two cores, enough to see the ordering | paper: the paper's settings, days [small]");
  line.option("--out DIR", arguments.folder, "the study's folder [runs/NAME-SCALE]");
  line.seed([&](int64_t seed) { arguments.settings.seed = seed; }, "of initial weights and examples [123]");
  line.option("--seeds N", arguments.settings.seeds, 1, "repetitions, with seeds N, N + 1 ... [1]");
  line.option("--text PATH", arguments.settings.text, "lm-length: the text, as task.path [small: data/kjv.txt]");
  line.option("--threads N", arguments.threads, 1, "runs at once, each on one thread [all cores]");
  line.flag("--keep-checkpoints", arguments.keep_checkpoints, "keep the weights of finished runs");
  line.flag("--dry-run", arguments.dry_run, "list the runs, and do nothing");
  line.flag("--quiet", arguments.quiet, "print errors only");
  line.example("margay study mqar", "into runs/mqar-small: report.md, mqar.svg, results.csv");
  line.example("margay study ar-length --scale paper --seeds 3 --out studies/ar", "the paper's settings, three times");
  line.example("margay study lm-length --text data/my.txt", "language models beyond their training length");
  line.example("margay study lcat-dimension --dry-run", "");
  if (!line.parse(words)) return false;
  arguments.settings.scale = parse_study_scale(arguments.scale);
  if (arguments.folder.empty()) arguments.folder = fmt::format("runs/{}-{}", arguments.name, arguments.scale);
  return true;
}

/// The command that makes the same results, without where they go.
std::string command_of(const StudyArguments& arguments) {
  std::string command = fmt::format("margay study {} --scale {}", arguments.name, arguments.scale);
  if (arguments.settings.seed != StudySettings().seed) command += fmt::format(" --seed {}", arguments.settings.seed);
  if (!arguments.settings.text.empty()) command += fmt::format(" --text {}", arguments.settings.text);
  if (arguments.settings.seeds != 1) command += fmt::format(" --seeds {}", arguments.settings.seeds);
  return command;
}

/// "12/48 runs  ETA 5:10  cat-d64-L128-lr0.01-seed123, ..."
std::string describe(const StudyProgress& progress) {
  const std::string left = std::isfinite(progress.seconds_left) ? duration(progress.seconds_left) : "?";
  return fmt::format("{}/{} runs  ETA {}  {}", progress.finished, progress.jobs, left,
                     fmt::join(progress.running, ", "));
}

/// Tells a person how a study goes.
class Watch final : public StudyObserver {
 public:
  Watch(std::string name, bool quiet) : name_(std::move(name)), display_(quiet) {}

  void on_start(const StudyProgress& progress) override {
    const std::string kept = progress.finished > 0 ? fmt::format(", {} of them done before", progress.finished) : "";
    display_.print_line(fmt::format("{}: {} runs{}", name_, progress.jobs, kept));
  }
  void on_progress(const StudyProgress& progress) override {
    if (display_.due(false)) show(progress);
  }
  void on_job_finished(const std::string&, const StudyProgress& progress) override {
    if (display_.due(true)) show(progress);
  }
  bool stop_requested() override { return stop_signal() != 0; }
  void finish(const std::string& line) { display_.print_line(line); }

 private:
  void show(const StudyProgress& progress) {
    const std::string text = describe(progress);
    display_.show(name_, progress.share, fmt::format("{:3.0f} %  {}", 100 * progress.share, text),
                  fmt::format("{:.0f} %  {}", 100 * progress.share, text));
  }

  std::string name_;
  LineDisplay display_;
};

void list_runs(const Study& study, const StudySettings& settings) {
  const StudyPlan plan = study.plan(settings);
  double all = 0;
  for (const StudyJob& job : plan.jobs) all += job.cost;
  std::vector<std::vector<std::string>> rows{{"run", "share of the work"}};
  for (const StudyJob& job : plan.jobs) rows.push_back({job.name, fmt::format("{:.2f} %", 100 * job.cost / all)});
  print_out(table(rows, true) + fmt::format("{} runs\n", plan.jobs.size()));
}

int run(const Arguments& words) {
  StudyArguments arguments;
  if (!parse(words, arguments)) return 0;
  const Study& study = find_study(arguments.name);
  if (arguments.dry_run) {
    list_runs(study, arguments.settings);
    return 0;
  }
  note_stop_signals();
  Watch watch(arguments.name, arguments.quiet);
  const StudyOptions options{.folder = arguments.folder,
                             .threads = arguments.threads,
                             .keep_checkpoints = arguments.keep_checkpoints,
                             .command = command_of(arguments),
                             .version = std::string(kVersion)};
  if (run_study(study, arguments.settings, options, watch) == StudyEnd::stopped) {
    watch.finish(fmt::format("stopped; the same command goes on from there, in {}", arguments.folder));
    return 128 + stop_signal();
  }
  watch.finish(fmt::format("see {0}/report.md and {0}/{1}.svg", arguments.folder, arguments.name));
  return 0;
}

}  // namespace

extern const Verb kStudy;
constinit const Verb kStudy = {"study", "make a figure of the paper", run};

}  // namespace margay::cli
