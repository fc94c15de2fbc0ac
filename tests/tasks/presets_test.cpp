#include "tasks/presets.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/temp_dir.h"

using namespace margay;

TEST_CASE("presets: every one parses, fits together and says what it is") {
  CHECK(presets().size() >= 7);
  for (const Preset& preset : presets()) {
    CAPTURE(preset.name);
    const Config config = preset_or_file(std::string(preset.name));
    CHECK_NOTHROW(validate(config));
    CHECK(preset.toml.starts_with("# "));
    CHECK(preset.description().size() > 20);
    CHECK_FALSE(preset.description().starts_with('#'));
    CHECK(&find_preset(preset.name) == &preset);
  }
  CHECK(std::is_sorted(presets().begin(), presets().end(),
                       [](const Preset& a, const Preset& b) { return a.name < b.name; }));
}

TEST_CASE("presets: the quickstart's are there, as the paper has them") {
  const Config cat = preset_or_file("mqar-64-cat"), attention = preset_or_file("mqar-64-attention");
  CHECK(cat.model.mixer == std::vector<std::string>{"cat"});
  CHECK(cat.model.position == "none");
  CHECK(attention.model.mixer == std::vector<std::string>{"attention"});
  CHECK(attention.model.position == "learned");
  for (const Config& config : {cat, attention}) {
    CHECK(config.model.n_layers == 1);
    CHECK(config.task.seq_len == 64);
    CHECK(config.task.num_kv_pairs == 4);
  }
  for (const char* name : {"lm-kjv-cat", "lm-kjv-attention"}) CHECK(preset_or_file(name).task.name == "text");
}

TEST_CASE("presets: a name or a path") {
  const test::TempDir dir;
  const std::string path = dir.write("mine.toml", "[model]\nd_model = 32\n");
  CHECK(preset_or_file(path).model.d_model == 32);
  const std::string no_extension = dir.write("mine", "[model]\nd_model = 16\n");
  CHECK(preset_or_file(no_extension).model.d_model == 16);
  CHECK_THROWS_AS(preset_or_file(dir.file("missing.toml")), DataError);
  CHECK_THROWS_AS(preset_or_file("missing.toml"), DataError);
  CHECK_THROWS_WITH_AS(preset_or_file("mqar-64-act"), "unknown preset \"mqar-64-act\"; the nearest is \"mqar-64-cat\"",
                       ConfigError);
  CHECK_THROWS_AS(preset_or_file(""), ConfigError);
}
