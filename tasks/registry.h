#pragma once
#include <memory>
#include <span>
#include <string_view>

#include "tasks/config.h"
#include "tasks/task.h"

namespace margay {

/// A kind of task: one constant in the task's .cpp file, listed in registry.cpp.
struct TaskInfo {
  std::string_view name;
  std::string_view summary;  ///< one line for lists
  /// Throws ConfigError where the sizes of the configuration do not fit each other. Opens no file.
  TaskShape (*shape)(const TaskConfig& config);
  /// Makes the task of a valid configuration. Throws DataError where a file is missing or too small.
  std::unique_ptr<Task> (*make)(const TaskConfig& config);
};

std::span<const TaskInfo* const> task_registry();

/// Throws ConfigError with the nearest name if there is no such task.
const TaskInfo& find_task(std::string_view name);

/// Validates the configuration and makes its task.
std::unique_ptr<Task> make_task(const TaskConfig& config);
/// The same for a whole configuration: the tokens of the task must fit its model, those of files too.
std::unique_ptr<Task> make_task(const Config& config);

}  // namespace margay
