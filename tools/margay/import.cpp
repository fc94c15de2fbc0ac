#include "tasks/hf/convert.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

int run(const Arguments& arguments) {
  std::string folder, out;
  int64_t conv_width = 0;
  CommandLine line(
      "import",
      "Makes a checkpoint of a Hugging Face folder: GPTNeoXForCausalLM (such as Pythia), MambaForCausalLM\n"
      "or Mamba2ForCausalLM, with config.json and safetensors weights in f32, f16 or bf16.");
  line.argument("HF_DIR", folder, "the folder with config.json and model.safetensors, or shards and their index");
  line.option("--out CHECKPOINT", out, "the folder to write", true);
  line.option("--add-conv W", conv_width, 1,
              "turn attention into CAT: filters of W taps that leave the function as it is, to be trained further");
  line.example("margay import pythia-14m --out checkpoints/pythia", "");
  line.example("margay import pythia-14m --add-conv 21 --out checkpoints/pythia-cat", "");
  if (!line.parse(arguments)) return 0;
  import_hf(folder, out, conv_width);
  return 0;
}

}  // namespace

extern const Verb kImport;
constinit const Verb kImport = {"import", "make a checkpoint of a Hugging Face folder", run};

}  // namespace margay::cli
