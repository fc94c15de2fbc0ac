#include "tasks/train/axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

namespace margay {
namespace {

constexpr double kSlack = 1e-9;  // of a step: what rounding may have added
constexpr int kRoughTicks = 5;

/// The distance of ticks that cut `span` into about `count` parts: 1, 2 or 5 times a power of ten.
double tick_step(double span, int count) {
  const double rough = span / count, decade = std::pow(10.0, std::floor(std::log10(rough)));
  const double share = rough / decade;
  return decade * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
}

Range rounded_linear(const Range& range) {
  if (!(range.low < range.high)) {
    const double pad = range.low == 0 ? 1 : std::abs(range.low) / 2;
    return rounded_linear({range.low - pad, range.low + pad});
  }
  const double step = tick_step(range.high - range.low, kRoughTicks);
  return {std::floor(range.low / step + kSlack) * step, std::ceil(range.high / step - kSlack) * step};
}

/// The nearest of 1, 2 and 5 times a power of ten that is not above `value`, or not below it.
double rounded_log(double value, bool up) {
  const double decade = std::pow(10.0, std::floor(std::log10(value)));
  constexpr std::array<double, 4> multiples = {1, 2, 5, 10};
  double rounded = up ? 10 * decade : decade;
  for (const double multiple : multiples) {
    const double candidate = multiple * decade;
    if (up && candidate >= value * (1 - kSlack)) rounded = std::min(rounded, candidate);
    if (!up && candidate <= value * (1 + kSlack)) rounded = std::max(rounded, candidate);
  }
  return rounded;
}

std::vector<double> linear_values(const Range& range, double step) {
  std::vector<double> values;
  const double last = std::floor(range.high / step + kSlack);
  for (double i = std::ceil(range.low / step - kSlack); i <= last; ++i) values.push_back(i * step + 0.0);  // no -0
  return values;
}

std::vector<double> log_values(const Range& range) {
  constexpr int most_decades = 8;
  const int first = static_cast<int>(std::floor(std::log10(range.low) + kSlack));
  const int last = static_cast<int>(std::ceil(std::log10(range.high) - kSlack));
  const int every = std::max(1, (last - first + most_decades - 1) / most_decades);
  const std::vector<double> multiples = last - first <= 2 ? std::vector<double>{1, 2, 5} : std::vector<double>{1};
  std::vector<double> values;
  for (int decade = first; decade <= last; decade += every) {
    for (const double multiple : multiples) {
      const double value = multiple * std::pow(10.0, decade);
      if (value >= range.low * (1 - kSlack) && value <= range.high * (1 + kSlack)) values.push_back(value);
    }
  }
  return values;
}

int decimals_of(double step) { return std::max(0, static_cast<int>(std::ceil(-std::log10(step) - kSlack))); }

/// 12,345 and 0.05: as many decimals as the step needs.
std::string linear_label(double value, double step) {
  if (std::abs(value) >= 1e7 || step < 1e-6) return fmt::format("{:.3g}", value);
  std::string text = fmt::format("{:.{}f}", value, decimals_of(step));
  const size_t first = text.front() == '-' ? 1 : 0, point = std::min(text.size(), text.find('.'));
  if (point - first < 5) return text;
  for (size_t at = point; at > first + 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string label_of(const Axis& axis, double value, double step) {
  if (axis.percent) return fmt::format("{:.{}f} %", 100 * value, axis.log ? 0 : decimals_of(100 * step));
  if (!axis.log) return linear_label(value, step);
  return value >= 1e-4 && value < 1e5 ? fmt::format("{:.10g}", value) : fmt::format("{:.0e}", value);
}

}  // namespace

Range axis_range(const Axis& axis, const Range& data) {
  const Range wanted{axis.low.value_or(data.low), axis.high.value_or(data.high)};
  Range range =
      axis.log ? Range{rounded_log(wanted.low, false), rounded_log(wanted.high, true)} : rounded_linear(wanted);
  if (axis.tight) range = wanted;
  range = {axis.low.value_or(range.low), axis.high.value_or(range.high)};
  if (!(range.low < range.high)) range.high = axis.log ? 10 * range.low : range.low + 1;
  return range;
}

double axis_share(const Axis& axis, const Range& range, double value) {
  if (!axis.log) return (value - range.low) / (range.high - range.low);
  if (!(value > 0)) return std::numeric_limits<double>::quiet_NaN();
  return std::log(value / range.low) / std::log(range.high / range.low);
}

std::vector<Tick> axis_ticks(const Axis& axis, const Range& range, int count) {
  const double step = tick_step(range.high - range.low, count);
  std::vector<Tick> ticks;
  std::vector<double> values = axis.log ? log_values(range) : linear_values(range, step);
  if (!axis.ticks.empty()) {
    values.clear();
    std::copy_if(axis.ticks.begin(), axis.ticks.end(), std::back_inserter(values),
                 [&](double value) { return value >= range.low && value <= range.high; });
  }
  for (const double value : values) {
    ticks.push_back({value, label_of(axis, value, step)});
  }
  return ticks;
}

}  // namespace margay
