#pragma once
#include <string>
#include <vector>

#include "tasks/study/runner.h"
#include "tasks/study/study.h"

namespace margay {

/// Writes results.csv, NAME.svg and report.md of a study into its folder. `complete`: whether all jobs are done.
void write_study(const Study& study, const StudySettings& settings, const StudyOptions& options, const StudyPlan& plan,
                 const Table& rows, bool complete);

/// A Markdown table; the first row is its head.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows);

/// "99.8 %"; "-" for NaN.
std::string percent_or_dash(double share);

/// The processor, its cores and vector instructions, memory and system, in one line without names of hosts.
std::string describe_machine();

}  // namespace margay
