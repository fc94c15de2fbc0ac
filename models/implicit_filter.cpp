#include "models/implicit_filter.h"

#include <cmath>

namespace margay {

std::vector<double> evenly_spaced(double first, double last, int64_t n) {
  std::vector<double> values(static_cast<size_t>(n), first);
  for (int64_t i = 1; i < n; ++i)
    values[static_cast<size_t>(i)] = first + (last - first) * static_cast<double>(i) / static_cast<double>(n - 1);
  return values;
}

Tensor position_features(int64_t length, int64_t embed, DType dtype, Device device) {
  constexpr double two_pi = 6.283185307179586476925286766559;
  const int64_t bands = (embed - 1) / 2;
  const std::vector<double> times = evenly_spaced(0, 1, length);
  const std::vector<double> frequencies = evenly_spaced(1e-4, static_cast<double>(bands - 1), bands);
  std::vector<double> values;
  values.reserve(static_cast<size_t>(length * embed));
  for (int64_t t = 0; t < length; ++t) {
    const double turn = two_pi * static_cast<double>(t) / static_cast<double>(length);
    values.push_back(times[static_cast<size_t>(t)]);
    for (const double f : frequencies) values.push_back(std::cos(f * turn));
    for (const double f : frequencies) values.push_back(-std::sin(f * turn));
  }
  return from_values(values, {length, embed}).to(dtype).to(device);
}

}  // namespace margay
