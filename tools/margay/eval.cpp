#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "tasks/registry.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/model_file.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

std::string as_json(const Evaluation& evaluation) {
  return nlohmann::ordered_json{{"loss", evaluation.loss},
                                {"accuracy", evaluation.accuracy},
                                {"examples", evaluation.examples},
                                {"tokens", evaluation.tokens},
                                {"seconds", evaluation.seconds},
                                {"tokens_per_second", static_cast<double>(evaluation.tokens) / evaluation.seconds}}
      .dump();
}

std::string as_text(const Evaluation& evaluation, double tokens_per_byte) {
  const double bits_per_byte = evaluation.loss / std::numbers::ln2 * tokens_per_byte;
  const std::string bits = tokens_per_byte > 0 ? fmt::format(" ({:.4f} bits a byte)", bits_per_byte) : "";
  return fmt::format("loss {:.6f}{}  accuracy {:.4f}  examples {}  tokens/s {}", evaluation.loss, bits,
                     evaluation.accuracy, with_commas(evaluation.examples),
                     short_count(static_cast<double>(evaluation.tokens) / evaluation.seconds));
}

int run(const Arguments& arguments) {
  std::string path;
  std::vector<std::string> overrides;
  bool json = false;
  Device device;
  CommandLine line(
      "eval",
      "Measures a model on the test examples of its task: mean loss, and the share of scored tokens that it\n"
      "predicts right, by example, then averaged over examples.");
  line.argument("RUN|CHECKPOINT", path, "the folder of a run or of a checkpoint");
  line.arguments("key=value", overrides, "changes of its configuration, as task.seq_len=256");
  line.flag("--json", json, "print one JSON object");
  line.device_and_threads(device);
  line.example("margay eval runs/mqar-64-cat", "");
  line.example("margay eval runs/ar-128-cat task.seq_len=1024 --json", "on longer sequences than it was trained on");
  if (!line.parse(arguments)) return 0;

  const std::string checkpoint = find_checkpoint(path);
  Config config = load_checkpoint_config(checkpoint);
  if (const std::string own = checkpoint_tokenizer(checkpoint); own != "bytes") config.task.tokenizer = own;
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  const auto task = make_task(config);
  const LanguageModel model = load_model(checkpoint, config.model, device);
  const Evaluation evaluation = evaluate(model, *task, Split::test, config.train.batch_size);
  print_out((json ? as_json(evaluation) : as_text(evaluation, task->tokens_per_byte(Split::test))) + '\n');
  return 0;
}

}  // namespace

extern const Verb kEval;
constinit const Verb kEval = {"eval", "measure a model on the test examples of its task", run};

}  // namespace margay::cli
