#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/safetensors.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/model_file.h"
#include "tools/margay/terminal.h"
#include "tools/margay/token_file.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr int64_t kTokensAtOnce = int64_t{1} << 14;

/// `examples` sequences from `first` on, as a batch.
Batch batch_of(const TokenFile& inputs, const TokenFile& targets, int64_t first, int64_t examples) {
  const auto part = [&](const std::vector<int32_t>& ids) {
    return std::vector(ids.begin() + first * inputs.columns, ids.begin() + (first + examples) * inputs.columns);
  };
  Batch batch;
  batch.examples = examples;
  batch.columns = inputs.columns;
  batch.inputs = part(inputs.ids);
  batch.targets = part(targets.ids);
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] != kIgnoredTarget) batch.rows.push_back(static_cast<int32_t>(i));
  }
  batch.labels = static_cast<int64_t>(batch.rows.size());
  return batch;
}

/// Leaves the gradients of the mean loss over the whole file in the parameters; returns that loss.
double compute_gradients(const LanguageModel& model, const TokenFile& inputs, const TokenFile& targets) {
  const int64_t labels =
      std::count_if(targets.ids.begin(), targets.ids.end(), [](int32_t t) { return t != kIgnoredTarget; });
  const int64_t at_once = std::max<int64_t>(1, kTokensAtOnce / std::max<int64_t>(1, inputs.columns));
  LossSum sum;
  for (int64_t first = 0; first < inputs.examples; first += at_once) {
    const Batch batch = batch_of(inputs, targets, first, std::min(at_once, inputs.examples - first));
    if (batch.labels > 0) add_gradients(model, batch, labels, {}, sum);
  }
  return sum.mean_loss();
}

int run(const Arguments& arguments) {
  std::string checkpoint, inputs_path, targets_path, out;
  Device device;
  CommandLine line(
      "backward",
      "Computes the gradients of the mean loss over all targets of a file, in evaluation mode, and prints\n"
      "the loss.");
  line.argument("CHECKPOINT", checkpoint, "a checkpoint or run folder; model.safetensors and config.toml are enough");
  line.option("--inputs FILE", inputs_path, "token ids: .npy, int32 [N,L]", true);
  line.option("--targets FILE", targets_path, "the token to predict at each: .npy, int32 [N,L], -100 = ignored", true);
  line.option("--out FILE", out, "where the gradients go: .safetensors, one per parameter", true);
  line.device_and_threads(device);
  line.example("margay gen mqar --count 8 --out data", "makes data/inputs.npy and data/targets.npy");
  line.example(
      "margay backward runs/mqar-64-cat/checkpoint --inputs data/inputs.npy --targets data/targets.npy "
      "--out grads.safetensors",
      "");
  if (!line.parse(arguments)) return 0;

  const std::string folder = find_checkpoint(checkpoint);
  const LanguageModel model = load_model(folder, load_checkpoint_config(folder).model, device);
  const TokenFile inputs = load_inputs(inputs_path, model.config().vocab_size);
  const TokenFile targets = load_targets(targets_path, model.config().vocab_size);
  if (inputs.examples != targets.examples || inputs.columns != targets.columns) {
    throw DataError(fmt::format("{}: must be as large as the inputs, [{},{}], got [{},{}]", quoted_path(targets_path),
                                inputs.examples, inputs.columns, targets.examples, targets.columns));
  }
  if (std::all_of(targets.ids.begin(), targets.ids.end(), [](int32_t t) { return t == kIgnoredTarget; })) {
    throw DataError(fmt::format("{}: must have a target that is not {}", quoted_path(targets_path), kIgnoredTarget));
  }
  const double loss = compute_gradients(model, inputs, targets);
  std::vector<NamedTensor> gradients;
  for (const Parameter& parameter : model.parameters()) {
    const Tensor gradient = parameter.value.grad();
    gradients.push_back({parameter.name, gradient.defined() ? gradient : zeros_like(parameter.value)});
  }
  save_safetensors(out, gradients);
  print_out(fmt::format("loss {:#.9g}\n", loss));
  return 0;
}

}  // namespace

extern const Verb kBackward;
constinit const Verb kBackward = {"backward", "compute loss and gradients on .npy files of tokens and targets", run};

}  // namespace margay::cli
