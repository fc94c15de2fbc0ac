#pragma once
#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace margay {

/// n tokens in a row.
using NGram = std::vector<int32_t>;

/// N-grams of one example, each drawn until it differs from all before. The caller makes sure that there are enough.
class DistinctNGrams {
 public:
  /// make() draws one N-gram.
  template <class Make>
  const NGram& next(const Make& make) {
    while (true) {
      const auto [gram, is_new] = seen_.insert(make());
      if (is_new) return *gram;
    }
  }

 private:
  std::set<NGram> seen_;
};

/// base^exponent, or `limit` if that is smaller; all of them from 0 to 2^31.
inline int64_t power_up_to(int64_t base, int64_t exponent, int64_t limit) {
  int64_t power = std::min<int64_t>(1, limit);
  for (int64_t i = 0; i < exponent && power < limit; ++i) power = std::min(limit, power * base);
  return power;
}

}  // namespace margay
