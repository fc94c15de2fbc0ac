#include "tasks/presets.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {

std::string_view Preset::description() const {
  std::string_view line = toml.substr(0, toml.find('\n'));
  line.remove_prefix(std::min(line.size(), line.find_first_not_of("# ")));
  return line;
}

const Preset& find_preset(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset;
    names.push_back(preset.name);
  }
  throw ConfigError(fmt::format("unknown preset {}; the nearest is \"{}\"", quoted(name), nearest_name(name, names)));
}

Config preset_or_file(const std::string& preset_or_path) {
  for (const Preset& preset : presets()) {
    if (preset.name == preset_or_path) return parse_config(preset.toml, preset.name);
  }
  std::error_code ignored;
  const std::filesystem::path path(preset_or_path);
  if (path.extension() == ".toml" || path.has_parent_path() || std::filesystem::exists(path, ignored)) {
    return load_config(preset_or_path);
  }
  const Preset& preset = find_preset(preset_or_path);  // throws
  return parse_config(preset.toml, preset.name);
}

}  // namespace margay
