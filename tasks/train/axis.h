#pragma once
#include <optional>
#include <string>
#include <vector>

namespace margay {

/// How one direction of a drawing measures.
struct Axis {
  std::string label = {};
  bool log = false;      ///< values that are not positive are left out
  bool percent = false;  ///< ticks read 0.25 as 25 %
  bool tight = false;    ///< ends where the data end, not at a tick
  /// Fixed ends; by default the data's, rounded outwards.
  std::optional<double> low = {}, high = {};
  std::vector<double> ticks = {};  ///< where to put marks; by default at round numbers
};

/// The values at the two ends of an axis, low < high.
struct Range {
  double low, high;
};

/// The ends of an axis for data that span `data`, rounded outwards where they are not fixed.
Range axis_range(const Axis& axis, const Range& data);

/// A value as a share of the axis's length; NaN for one that the axis cannot show.
double axis_share(const Axis& axis, const Range& range, double value);

/// A mark on an axis.
struct Tick {
  double value;
  std::string label = {};
};
/// Round numbers in the range that divide it into about `count` parts: multiples of 1, 2 or 5 times a power of ten; on
/// a log axis powers of ten, with 2 and 5 times them where there are few. Or the axis's own ticks, in the range.
std::vector<Tick> axis_ticks(const Axis& axis, const Range& range, int count);

}  // namespace margay
