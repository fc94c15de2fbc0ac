#include "tasks/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {

extern const TaskInfo kMqarTask, kMqNarTask, kAssociativeRecallTask, kNGramRecallTask, kSelectiveCopyTask, kTextTask;

namespace {
constexpr std::array kTasks = {&kMqarTask,        &kMqNarTask,         &kAssociativeRecallTask,
                               &kNGramRecallTask, &kSelectiveCopyTask, &kTextTask};
}

std::span<const TaskInfo* const> task_registry() { return kTasks; }

const TaskInfo& find_task(std::string_view name) {
  std::vector<std::string_view> names;
  for (const TaskInfo* info : kTasks) {
    if (info->name == name) return *info;
    names.push_back(info->name);
  }
  throw ConfigError(fmt::format("unknown task {}; the nearest is \"{}\"", quoted(name), nearest_name(name, names)));
}

std::unique_ptr<Task> make_task(const TaskConfig& config) {
  validate(config);
  return find_task(config.name).make(config);
}

std::unique_ptr<Task> make_task(const Config& config) {
  validate(config);
  std::unique_ptr<Task> task = make_task(config.task);
  if (task->shape().vocab_size > config.model.vocab_size) {
    throw ConfigError(fmt::format("model.vocab_size must be at least {}, the tokens of {}, got {}",
                                  task->shape().vocab_size, quoted(config.task.path), config.model.vocab_size));
  }
  return task;
}

}  // namespace margay
