#pragma once
#include <cmath>
#include <vector>

namespace margay::test {

/// Whether counts agree with the shares of a law by Pearson's chi-square test. Outcomes expected fewer than 10 times
/// are pooled. The statistic of k outcomes has mean k - 1 and variance 2 (k - 1); six standard deviations above the
/// mean lie beyond any chance (and seeds are fixed, so a test that passes once always does).
inline bool fits_law(const std::vector<double>& counts, const std::vector<double>& shares) {
  double total = 0;
  for (const double count : counts) total += count;
  double statistic = 0, degrees = -1, rare_count = 0, rare_expected = 0;
  const auto add = [&](double count, double expected) {
    statistic += (count - expected) * (count - expected) / expected;
    ++degrees;
  };
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = shares[i] * total;
    if (expected >= 10) {
      add(counts[i], expected);
    } else {
      rare_count += counts[i];
      rare_expected += expected;
    }
  }
  if (rare_expected >= 10) add(rare_count, rare_expected);
  if (rare_expected < 10 && rare_count > 60) return false;
  return statistic <= degrees + 6 * std::sqrt(2 * degrees);
}

}  // namespace margay::test
