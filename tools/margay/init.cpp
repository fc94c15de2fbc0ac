#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/presets.h"
#include "tasks/train/model_file.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

int run(const Arguments& arguments) {
  std::string source, out;
  std::vector<std::string> overrides;
  std::optional<int64_t> seed;
  Device device;
  CommandLine line("init", "Writes a checkpoint with untrained weights.");
  line.argument("PRESET|CONFIG.toml", source, "a name of `margay list presets`, or a file; [model] alone will do");
  line.arguments("key=value", overrides, "changes of the configuration, as model.d_model=128");
  line.option("--out CHECKPOINT", out, "the folder to write", true);
  line.seed([&](int64_t value) { seed = value; }, "train.seed, which the weights depend on");
  line.device_and_threads(device);
  line.example("margay init mqar-64-cat --out fresh", "");
  line.example("margay init mqar-64-cat model.mixer=attention model.position=rope --seed 7 --out fresh", "");
  if (!line.parse(arguments)) return 0;

  Config config = preset_or_file(source);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  if (seed) config.train.seed = *seed;
  if (std::filesystem::exists(std::filesystem::path(out) / "state.json")) {
    throw ConfigError(
        fmt::format("{} is the checkpoint of a run, which untrained weights would destroy", quoted_path(out)));
  }
  // The same weights for every device: they are made on the CPU.
  save_model(out, config, LanguageModel(config.model, static_cast<uint64_t>(config.train.seed)));
  return 0;
}

}  // namespace

extern const Verb kInit;
constinit const Verb kInit = {"init", "write a checkpoint with untrained weights", run};

}  // namespace margay::cli
