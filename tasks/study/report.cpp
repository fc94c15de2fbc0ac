#include "tasks/study/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/atomic_file.h"

namespace margay {
namespace {

/// The value of the first line "key : value" of /proc/cpuinfo; empty where there is none.
std::string processor_entry(std::string_view key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

/// Of the processor's flags those that kernels are built for.
std::string vector_instructions() {
  constexpr std::array<std::string_view, 6> names = {"avx", "avx2", "fma", "avx512f", "asimd", "sve"};
  std::istringstream flags(processor_entry("flags") + ' ' + processor_entry("Features"));
  std::vector<std::string> found;
  for (std::string flag; flags >> flag;) {
    if (std::find(names.begin(), names.end(), flag) != names.end()) found.push_back(flag);
  }
  return fmt::format("{}", fmt::join(found, " "));
}

/// Of all runs together; a run may have several rows.
double total_seconds(const Table& rows) {
  double sum = 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (row > 0 && rows.text(row, "run") == rows.text(row - 1, "run")) continue;
    const double seconds = rows.number(row, "seconds");
    if (std::isfinite(seconds)) sum += seconds;
  }
  return sum;
}

std::string report(const Study& study, const StudySettings& settings, const StudyOptions& options,
                   const StudyPlan& plan, const Table& rows, bool complete) {
  std::string text = fmt::format("# {}\n\n{}.\n\n![{}]({}.svg)\n\n", study.name, study.summary, study.name, study.name);
  if (!complete) text += "**Not finished:** this is what there is so far.\n\n";
  text += plan.findings(rows) + '\n';
  text += "## How it was run\n\n";
  text += fmt::format("- Command: `{}`\n- Scale {}, seed {}, repetitions: {}\n", options.command,
                      to_string(settings.scale), settings.seed, settings.seeds);
  text += fmt::format(
      "- {}\n- {}\n- Runs: {}, whose seconds add up to {:.0f} minutes; all their rows are in `results.csv`\n",
      options.version, describe_machine(), plan.jobs.size(), total_seconds(rows) / 60);
  return text;
}

}  // namespace

void write_study(const Study& study, const StudySettings& settings, const StudyOptions& options, const StudyPlan& plan,
                 const Table& rows, bool complete) {
  const std::filesystem::path folder(options.folder);
  const auto write = [&](const std::string& name, const std::string& content) {
    write_file_atomically((folder / name).string(), content);
  };
  write("results.csv", rows.to_csv());
  write(fmt::format("{}.svg", study.name), to_svg(plan.figure(rows)));
  write("report.md", report(study, settings, options, plan, rows, complete));
}

std::string markdown_table(const std::vector<std::vector<std::string>>& rows) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    text += fmt::format("| {} |\n", fmt::join(rows[i], " | "));
    if (i > 0) continue;
    for (size_t column = 0; column < rows[i].size(); ++column) text += column == 0 ? "|---" : "|---:";
    text += "|\n";
  }
  return text;
}

std::string percent_or_dash(double share) { return std::isfinite(share) ? fmt::format("{:.1f} %", 100 * share) : "-"; }

std::string describe_machine() {
  utsname system{};
  ::uname(&system);
  const std::string release(system.release), processor = processor_entry("model name");
  const double memory = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE));
  return fmt::format("{}, cores: {}, {}, {:.0f} GiB, {} {}", processor.empty() ? system.machine : processor.c_str(),
                     ::sysconf(_SC_NPROCESSORS_ONLN), vector_instructions(), memory / 0x1p30, system.sysname,
                     release.substr(0, release.find('-')));
}

}  // namespace margay
