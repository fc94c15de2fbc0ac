#include "tasks/train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/error.h"
#include "engine/file.h"

namespace margay {
namespace {

constexpr double kLogFromRatio = 30;
constexpr size_t kSmoothedFrom = 60;  // points; fewer are drawn as they are

/// One quantity of a run, at the steps where it was measured.
struct Curve {
  std::vector<double> steps, values;
};

template <class Value>
Curve curve_of(const RunCurves& run, const Value& value_of) {
  Curve curve;
  for (const Metrics& metrics : run.metrics) {
    const std::optional<double> value = value_of(metrics);
    if (!value) continue;
    curve.steps.push_back(static_cast<double>(metrics.step));
    curve.values.push_back(*value);
  }
  return curve;
}

Curve train_loss(const RunCurves& run) {
  return curve_of(run, [](const Metrics& m) { return std::optional(m.loss); });
}
Curve train_accuracy(const RunCurves& run) {
  return curve_of(run, [](const Metrics& m) { return std::optional(m.train_accuracy); });
}
Curve test_loss(const RunCurves& run) {
  return curve_of(run, [](const Metrics& m) { return m.test_loss; });
}
Curve test_accuracy(const RunCurves& run) {
  return curve_of(run, [](const Metrics& m) { return m.accuracy; });
}

/// Means over windows of 2 % of the run, centred, so that a sudden fall stays where it is.
Curve smoothed(const Curve& curve) {
  const size_t count = curve.values.size(), reach = count / 100;
  if (count < kSmoothedFrom || reach == 0) return curve;
  std::vector<double> sums(count + 1, 0);
  for (size_t i = 0; i < count; ++i) sums[i + 1] = sums[i] + curve.values[i];
  Curve smooth{curve.steps, std::vector<double>(count)};
  for (size_t i = 0; i < count; ++i) {
    const size_t near = std::min({reach, i, count - 1 - i});  // symmetric also at the ends
    smooth.values[i] = (sums[i + near + 1] - sums[i - near]) / static_cast<double>(2 * near + 1);
  }
  return smooth;
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }
std::string digits(double value) { return fmt::format("{:.3g}", value); }

/// A series in the legend with its last value.
Series listed(const std::string& name, const Curve& curve, size_t colour, Series::Style style,
              std::string (*as_text)(double)) {
  return {name, curve.values.empty() ? "" : as_text(curve.values.back()), curve.steps, curve.values, colour, style};
}

/// A measured curve, faint, and what it averages to.
void append_training(std::vector<Series>& panel, const Curve& curve, std::string (*as_text)(double)) {
  const Curve smooth = smoothed(curve);
  panel.push_back({.x = curve.steps, .y = curve.values, .style = Series::Style::faint_line});
  panel.push_back(listed("training", smooth, 0, Series::Style::line, as_text));
}

bool log_scale(const std::vector<Series>& curves, LossScale scale) {
  if (scale != LossScale::automatic) return scale == LossScale::log;
  double low = INFINITY, high = 0;
  for (const Series& curve : curves) {
    for (const double value : curve.y) {
      if (value > 0) low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  return high > kLogFromRatio * low;
}

Panel loss_panel(std::string title, std::vector<Series> curves, LossScale scale) {
  const bool log = log_scale(curves, scale);
  return {.title = std::move(title),
          .x = {.label = "step", .tight = true, .low = 0},
          .y = {.label = "cross-entropy, nats", .log = log},
          .series = std::move(curves)};
}

Panel accuracy_panel(std::string title, std::vector<Series> curves) {
  return {.title = std::move(title),
          .x = {.label = "step", .tight = true, .low = 0},
          .y = {.label = "share predicted right", .percent = true, .low = 0, .high = 1},
          .series = std::move(curves)};
}

}  // namespace

std::string run_name(const std::string& run_folder) {
  const std::filesystem::path folder = std::filesystem::absolute(run_folder).lexically_normal();
  return (folder.has_filename() ? folder : folder.parent_path()).filename().string();
}

RunCurves load_curves(const std::string& run_folder) {
  RunCurves run{run_name(run_folder), read_metrics((std::filesystem::path(run_folder) / "metrics.jsonl").string())};
  if (run.metrics.empty()) throw DataError(fmt::format("{}: the run has no metrics yet", quoted_path(run_folder)));
  return run;
}

Figure run_figure(const RunCurves& run, const std::string& subtitle, LossScale scale) {
  std::vector<Series> losses, accuracies;
  append_training(losses, train_loss(run), digits);
  losses.push_back(listed("test", test_loss(run), 1, Series::Style::line_and_points, digits));
  append_training(accuracies, train_accuracy(run), percent);
  accuracies.push_back(listed("test", test_accuracy(run), 1, Series::Style::line_and_points, percent));
  return {run.name, subtitle, {loss_panel("Loss", losses, scale), accuracy_panel("Accuracy", accuracies)}};
}

Figure comparison_figure(std::span<const RunCurves> runs, LossScale scale) {
  std::vector<Series> losses, accuracies;
  std::string title;
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string& name = runs[i].name;
    losses.push_back(listed(name, smoothed(train_loss(runs[i])), i, Series::Style::line, digits));
    accuracies.push_back(listed(name, test_accuracy(runs[i]), i, Series::Style::line_and_points, percent));
    title += (i == 0 ? "" : i + 1 == runs.size() ? " and " : ", ") + name;
  }
  if (runs.size() > 3) title = fmt::format("{} runs", runs.size());
  return {title, "", {loss_panel("Training loss", losses, scale), accuracy_panel("Test accuracy", accuracies)}};
}

}  // namespace margay
