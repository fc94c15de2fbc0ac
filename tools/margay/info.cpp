#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/error.h"
#include "tasks/presets.h"
#include "tasks/registry.h"
#include "tasks/train/model_file.h"
#include "tools/margay/step_cost.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

/// Parameters that belong together: "embed", "blocks.0.mixer", "gpt_neox.layers.0.attention".
struct Group {
  std::string name;
  int64_t tensors = 0, elements = 0;
};

std::string group_of(const std::string& parameter) {
  const size_t end = parameter.rfind('.');
  const std::string owner = parameter.substr(0, end == std::string::npos ? 0 : end);
  constexpr std::string_view mixer = ".mixer", attention = ".attention", mlp = ".mlp";
  for (const std::string_view part : {mixer, attention, mlp}) {
    const size_t at = owner.find(part);
    if (at != std::string::npos) return owner.substr(0, at + part.size());
  }
  return owner.empty() ? parameter : owner;
}

std::vector<Group> groups_of(const LanguageModel& model) {
  std::vector<Group> groups;
  for (const Parameter& parameter : model.parameters()) {
    const std::string name = group_of(parameter.name);
    if (groups.empty() || groups.back().name != name) groups.push_back({name});
    ++groups.back().tensors;
    groups.back().elements += parameter.value.numel();
  }
  return groups;
}

bool fits(const Config& config) {
  try {
    validate(config);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

/// The batch that the configuration trains on; where its task does not fit the model, as in a checkpoint made from
/// [model] alone, whole sequences of the model's length.
StepShape shape_of(const Config& config) {
  if (!fits(config)) return {config.train.batch_size, config.model.max_seq_len, config.model.max_seq_len};
  const TaskShape task = find_task(config.task.name).shape(config.task);
  StepShape shape{config.train.batch_size, config.task.seq_len + task.extra_columns, config.task.seq_len};
  // A text scores every token; its file need not be there.
  if (config.task.name != "text") shape.labels = make_task(config.task)->max_labels(config.task.seq_len);
  return shape;
}

struct Info {
  std::string source;
  const Config& config;
  const LanguageModel& model;
  StepShape shape;
  double flops;
  StepMemory memory;
};

std::string as_json(const Info& info) {
  using Json = nlohmann::ordered_json;
  Json groups = Json::array(), tensors = Json::array();
  for (const Group& group : groups_of(info.model))
    groups.push_back({{"name", group.name}, {"elements", group.elements}});
  for (const Parameter& parameter : info.model.parameters()) {
    const Shape& shape = parameter.value.shape();
    tensors.push_back({{"name", parameter.name},
                       {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                       {"elements", parameter.value.numel()},
                       {"decay", parameter.decay}});
  }
  const StepMemory& memory = info.memory;
  return Json{{"name", info.source},
              {"backbone", info.config.model.backbone},
              {"mixer", info.config.model.mixer},
              {"parameters", info.model.parameter_count()},
              {"groups", groups},
              {"tensors", tensors},
              {"step",
               {{"batch_size", info.shape.examples},
                {"tokens", info.shape.examples * info.shape.columns},
                {"labels", info.shape.examples * info.shape.labels},
                {"flops", info.flops},
                {"memory_bytes",
                 {{"parameters", memory.parameters},
                  {"gradients", memory.gradients},
                  {"moments", memory.moments},
                  {"activations", memory.activations},
                  {"total", memory.total()}}}}}}
             .dump(2) +
         '\n';
}

std::string as_text(const Info& info) {
  const ModelConfig& model = info.config.model;
  std::string text = fmt::format("{}: backbone {}, {} layer{} of {}, d_model {}, vocab_size {}\n\n", info.source,
                                 model.backbone, model.n_layers, model.n_layers == 1 ? "" : "s",
                                 fmt::join(model.mixer, ", "), model.d_model, model.vocab_size);
  std::vector<std::vector<std::string>> rows{{"Parameters", "tensors", "elements"}};
  for (const Group& group : groups_of(info.model)) {
    rows.push_back({"  " + group.name, std::to_string(group.tensors), with_commas(group.elements)});
  }
  rows.push_back(
      {"  total", std::to_string(info.model.parameters().size()), with_commas(info.model.parameter_count())});
  const StepShape& shape = info.shape;
  text += table(rows, true) + fmt::format("\nA training step on {} sequences of {} tokens, {} of them scored\n",
                                          shape.examples, shape.columns, shape.labels);
  const StepMemory& memory = info.memory;
  return text + table({{"  floating-point operations", short_count(info.flops)},
                       {"  parameters", short_bytes(static_cast<double>(memory.parameters))},
                       {"  gradients", short_bytes(static_cast<double>(memory.gradients))},
                       {"  optimiser's moments", short_bytes(static_cast<double>(memory.moments))},
                       {"  activations, about", short_bytes(static_cast<double>(memory.activations))},
                       {"  memory in all, about", short_bytes(static_cast<double>(memory.total()))}},
                      true);
}

bool is_checkpoint(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

int run(const Arguments& arguments) {
  std::string source;
  std::vector<std::string> overrides;
  bool json = false;
  CommandLine line("info",
                   "Tells what a model is made of, and what a training step costs: operations from a formula, memory\n"
                   "from steps on one and two sequences.");
  line.argument("CHECKPOINT|PRESET", source, "a checkpoint or run folder, a preset, or a configuration file");
  line.arguments("key=value", overrides, "changes of the configuration, as model.d_model=128");
  line.flag("--json", json, "print one JSON object, with the shape of every parameter");
  line.threads();
  line.example("margay info mqar-64-cat", "");
  line.example("margay info runs/lm-kjv-cat/checkpoint --json", "");
  if (!line.parse(arguments)) return 0;

  const std::string checkpoint = is_checkpoint(source) ? find_checkpoint(source) : "";
  Config config = checkpoint.empty() ? preset_or_file(source) : load_checkpoint_config(checkpoint);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  if (checkpoint.empty()) validate(config);
  const LanguageModel model =
      checkpoint.empty() ? LanguageModel(config.model, 0) : load_model(checkpoint, config.model);
  const StepShape shape = shape_of(config);
  const Info info{source, config, model, shape, step_flops(model, shape), step_memory(model, shape)};
  print_out(json ? as_json(info) : as_text(info));
  return 0;
}

}  // namespace

extern const Verb kInfo;
constinit const Verb kInfo = {"info", "show parameters, operations and memory of a model", run};

}  // namespace margay::cli
