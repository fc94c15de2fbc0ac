#pragma once
#include <span>
#include <string>
#include <string_view>

#include "tasks/config.h"

namespace margay {

/// A configuration compiled into the library, from a file in tasks/presets.
struct Preset {
  std::string_view name;  ///< the file's, without ".toml"
  std::string_view toml;

  /// The text of the first line's comment.
  std::string_view description() const;
};

/// All presets, by name.
std::span<const Preset> presets();

/// Throws ConfigError with the nearest name if there is no such preset.
const Preset& find_preset(std::string_view name);

/// The configuration of a preset, or of a TOML file: what names no preset but holds a '/', ends in ".toml" or exists is
/// a file. Throws as find_preset and load_config do.
Config preset_or_file(const std::string& preset_or_path);

}  // namespace margay
