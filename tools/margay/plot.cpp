#include <fmt/format.h>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/names.h"
#include "tasks/train/report.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

LossScale parse_scale(const std::string& name) {
  if (name == "auto") return LossScale::automatic;
  if (name == "linear") return LossScale::linear;
  if (name == "log") return LossScale::log;
  throw ConfigError(fmt::format("--loss must be auto, linear or log, got {}", margay::quoted(name)));
}

int run(const Arguments& arguments) {
  std::vector<std::string> folders;
  std::string out, scale = "auto";
  CommandLine line("plot", "Draws the curves of runs as an SVG picture: one run in detail, several beside each other.");
  line.arguments("RUN", folders, "run folders", 1);
  line.option("--out FILE.svg", out, "the picture", true);
  line.option("--loss SCALE", scale, "axis of the loss: auto, linear or log [auto]");
  line.example("margay plot runs/mqar-64-cat runs/mqar-64-attention --out recall.svg", "");
  if (!line.parse(arguments)) return 0;

  std::vector<RunCurves> runs;
  for (const std::string& folder : folders) runs.push_back(load_curves(folder));
  const LossScale loss = parse_scale(scale);
  const Figure figure = runs.size() == 1 ? run_figure(runs.front(), "", loss) : comparison_figure(runs, loss);
  write_file_atomically(out, to_svg(figure));
  return 0;
}

}  // namespace

extern const Verb kPlot;
constinit const Verb kPlot = {"plot", "draw the curves of runs", run};

}  // namespace margay::cli
