#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "engine/device.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/op.h"
#include "models/mixer.h"
#include "tasks/presets.h"
#include "tasks/registry.h"
#include "tasks/study/study.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

struct Item {
  std::string name, summary;
};
using Items = std::vector<Item>;

Items models() {
  Items items;
  for (const std::string& name : mixer_names()) items.push_back({name, ""});
  return items;
}

Items tasks() {
  Items items;
  for (const TaskInfo* info : task_registry()) items.push_back({std::string(info->name), std::string(info->summary)});
  return items;
}

Items ops() {
  Items items;
  for (const Op* op : Op::all()) {
    const std::string_view reason = op->no_gradient_reason();
    items.push_back({op->name(), reason.empty() ? "" : fmt::format("no gradient: {}", reason)});
  }
  return items;
}

Items preset_list() {
  Items items;
  for (const Preset& preset : presets()) {
    items.push_back({std::string(preset.name), std::string(preset.description())});
  }
  return items;
}

Items study_list() {
  Items items;
  for (const Study* study : studies()) items.push_back({std::string(study->name), std::string(study->summary)});
  return items;
}

Items devices() {
  const std::vector<std::string> lines = describe_devices();  // the CPU first
  Items items;
  for (const std::string& line : lines) {
    const size_t colon = line.find(": ");
    items.push_back({line.substr(0, colon), line.substr(colon + 2)});
  }
  return items;
}

struct Kind {
  std::string_view name;
  Items (*items)();
};
constexpr std::array<Kind, 6> kKinds = {{{"models", models},
                                         {"tasks", tasks},
                                         {"ops", ops},
                                         {"presets", preset_list},
                                         {"studies", study_list},
                                         {"devices", devices}}};

const Kind& find_kind(const std::string& name) {
  std::vector<std::string_view> names;
  for (const Kind& kind : kKinds) {
    if (kind.name == name) return kind;
    names.push_back(kind.name);
  }
  throw ConfigError(
      fmt::format("unknown list {}; the nearest is \"{}\"", margay::quoted(name), nearest_name(name, names)));
}

std::string as_json(const Items& items) {
  auto list = nlohmann::ordered_json::array();
  for (const Item& item : items) list.push_back({{"name", item.name}, {"summary", item.summary}});
  return list.dump(2) + '\n';
}

std::string as_text(const Items& items) {
  std::vector<std::vector<std::string>> rows;
  for (const Item& item : items) rows.push_back({item.name, item.summary});
  return table(rows);
}

int run(const Arguments& arguments) {
  std::string kind;
  bool json = false;
  CommandLine line("list", "Lists what there is, by name.");
  line.argument("KIND", kind, "models (mixers), tasks, ops, presets, studies or devices");
  line.flag("--json", json, "print a JSON list of objects");
  line.example("margay list presets", "");
  line.example("margay list ops --json", "");
  if (!line.parse(arguments)) return 0;
  const Items items = find_kind(kind).items();
  print_out(json ? as_json(items) : as_text(items));
  return 0;
}

}  // namespace

extern const Verb kList;
constinit const Verb kList = {"list", "list models, tasks, ops, presets, studies or devices", run};

}  // namespace margay::cli
