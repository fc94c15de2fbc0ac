#include "tasks/hf/convert.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

int run(const Arguments& arguments) {
  std::string checkpoint, out;
  CommandLine line(
      "export",
      "Makes a folder that the transformers package reads, with config.json and model.safetensors, of a\n"
      "checkpoint: backbone gpt_neox with attention, or mamba or mamba2 with model.final_norm = rms_norm.");
  line.argument("CHECKPOINT", checkpoint, "a checkpoint or run folder");
  line.option("--out HF_DIR", out, "the folder to write", true);
  line.example("margay export runs/lm-kjv-neox-attention --out pythia-kjv", "");
  if (!line.parse(arguments)) return 0;
  export_hf(checkpoint, out);
  return 0;
}

}  // namespace

extern const Verb kExport;
constinit const Verb kExport = {"export", "make a Hugging Face folder of a checkpoint", run};

}  // namespace margay::cli
