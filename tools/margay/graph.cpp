#include <algorithm>

#include "engine/atomic_file.h"
#include "engine/debug.h"
#include "models/language_model.h"
#include "tasks/presets.h"
#include "tools/margay/terminal.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr int64_t kLongest = 64;  // tokens: shapes that are easy to read

int run(const Arguments& arguments) {
  std::string source, out;
  std::vector<std::string> overrides;
  CommandLine line(
      "graph", "Draws the ops behind a model's loss in Graphviz's language, for one sequence with one scored token.");
  line.argument("PRESET|CONFIG.toml", source, "a name of `margay list presets`, or a file");
  line.arguments("key=value", overrides, "changes of the configuration, as model.n_layers=2");
  line.option("--out FILE.dot", out, "where to write it [standard output]");
  line.example("margay graph mqar-64-cat --out cat.dot && dot -Tsvg cat.dot > cat.svg", "");
  if (!line.parse(arguments)) return 0;

  Config config = preset_or_file(source);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  const LanguageModel model(config.model, 0);
  const Tensor ids = zeros({1, std::min(config.model.max_seq_len, kLongest)}, DType::i32);
  const Tensor row = zeros({1}, DType::i32);
  const std::string dot = debug::dot(model.loss(ids, row, row).loss);
  if (out.empty()) {
    print_out(dot);
  } else {
    write_file_atomically(out, dot);
  }
  return 0;
}

}  // namespace

extern const Verb kGraph;
constinit const Verb kGraph = {"graph", "draw the ops of a model", run};

}  // namespace margay::cli
