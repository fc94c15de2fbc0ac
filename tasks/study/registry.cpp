#include <fmt/format.h>

#include <array>

#include "engine/error.h"
#include "engine/names.h"
#include "tasks/study/study.h"

namespace margay {

extern const Study kArLengthStudy, kMqarStudy, kMqnarStudy, kLcatDimensionStudy, kLmLengthStudy;

namespace {

constexpr std::array kStudies = {&kArLengthStudy, &kLmLengthStudy, &kMqarStudy, &kMqnarStudy, &kLcatDimensionStudy};
constexpr std::array<std::string_view, 2> kScales = {"small", "paper"};  // in the order of the enumeration

}  // namespace

std::string_view to_string(StudyScale scale) { return kScales[static_cast<size_t>(scale)]; }

StudyScale parse_study_scale(std::string_view name) {
  for (size_t i = 0; i < kScales.size(); ++i) {
    if (kScales[i] == name) return static_cast<StudyScale>(i);
  }
  throw ConfigError(fmt::format("--scale must be small or paper, got {}; the nearest is \"{}\"", quoted(name),
                                nearest_name(name, kScales)));
}

std::span<const Study* const> studies() { return kStudies; }

const Study& find_study(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Study* study : kStudies) {
    if (study->name == name) return *study;
    names.push_back(study->name);
  }
  throw ConfigError(fmt::format("unknown study {}; the nearest is \"{}\"", quoted(name), nearest_name(name, names)));
}

}  // namespace margay
