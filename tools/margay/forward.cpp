#include <algorithm>

#include "engine/atomic_file.h"
#include "engine/autograd.h"
#include "engine/npy.h"
#include "engine/tensor_bytes.h"
#include "tasks/train/model_file.h"
#include "tools/margay/token_file.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;  // 64 MiB

/// Writes logits as they are computed: only those of a few sequences are in memory.
void write_logits(const LanguageModel& model, const TokenFile& inputs, const std::string& path) {
  const NoGrad no_grad;
  const int64_t vocab = model.config().vocab_size, columns = inputs.columns;
  const std::string header = npy_header(DType::f32, {inputs.examples, columns, vocab});
  const int64_t at_once = std::max<int64_t>(1, kLogitsAtOnce / std::max<int64_t>(1, columns * vocab));
  write_file_atomically(path, [&](FileWriter& file) {
    file.write(header);
    for (int64_t first = 0; columns > 0 && first < inputs.examples; first += at_once) {
      const int64_t examples = std::min(at_once, inputs.examples - first);
      const auto ids = std::span(inputs.ids).subspan(first * columns, examples * columns);
      const Tensor logits = model.logits(from_values(ids, {examples, columns}, model.device()));
      with_tensor_bytes(logits, [&](std::span<const uint8_t> bytes) { file.write(bytes.data(), bytes.size()); });
    }
  });
}

int run(const Arguments& arguments) {
  std::string checkpoint, inputs, out;
  Device device;
  CommandLine line("forward", "Computes the logits of token sequences, in evaluation mode.");
  line.argument("CHECKPOINT", checkpoint, "a checkpoint or run folder; model.safetensors and config.toml are enough");
  line.option("--inputs FILE", inputs, "token ids: .npy, int32 [N,L]", true);
  line.option("--out FILE", out, "where the logits go: .npy, float32 [N,L,V]", true);
  line.device_and_threads(device);
  line.example("margay gen mqar --count 8 --out data", "makes data/inputs.npy");
  line.example("margay forward runs/mqar-64-cat/checkpoint --inputs data/inputs.npy --out logits.npy", "");
  if (!line.parse(arguments)) return 0;
  const std::string folder = find_checkpoint(checkpoint);
  const LanguageModel model = load_model(folder, load_checkpoint_config(folder).model, device);
  write_logits(model, load_inputs(inputs, model.config().vocab_size), out);
  return 0;
}

}  // namespace

extern const Verb kForward;
constinit const Verb kForward = {"forward", "compute the logits of an .npy file of tokens", run};

}  // namespace margay::cli
