#include "tasks/sampling.h"

#include <algorithm>
#include <cmath>

namespace margay {

SlotSampler::SlotSampler(int64_t most_slots, double power)
    : weight_(static_cast<size_t>(most_slots)), tree_(static_cast<size_t>(most_slots) + 1) {
  const double largest = std::pow(power > 1 ? static_cast<double>(most_slots) : 1.0, power - 1);
  for (int64_t slot = 0; slot < most_slots; ++slot) {
    const double share = std::pow(static_cast<double>(slot + 1), power - 1) / largest;
    weight_[slot] = std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(share * 0x1p40)));
  }
  for (int64_t node = 1; node <= most_slots; ++node) {
    tree_[node] += weight_[node - 1];
    const int64_t parent = node + (node & -node);
    if (parent <= most_slots) tree_[parent] += tree_[node];
  }
}

}  // namespace margay
