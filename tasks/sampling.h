#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/rng.h"
#include "tasks/task.h"

namespace margay {

/// Uniform integer in [0, n), unbiased, for n beyond 32 bits. n > 0.
inline uint64_t uniform_below(RandomStream& random, uint64_t n) {
  const int unused = std::countl_zero(n);
  uint64_t draw = random.bits64() >> unused;
  while (draw >= n) draw = random.bits64() >> unused;
  return draw;
}

/// A random seed for one purpose, unrelated to that of any other purpose or part of it.
inline uint64_t derived_seed(int64_t seed, std::string_view purpose, uint64_t part = 0) {
  const PhiloxBlock block = philox(static_cast<uint64_t>(seed), hash_name(purpose), part);
  return uint64_t{block.word[0]} << 32 | block.word[1];
}

/// The random streams of a task's examples, one per split and index.
class ExampleStreams {
 public:
  ExampleStreams(std::string_view task, int64_t seed) {
    for (size_t split = 0; split < seeds_.size(); ++split) seeds_[split] = derived_seed(seed, task, split);
  }
  RandomStream of(Split split, int64_t index) const {
    return {seeds_[static_cast<size_t>(split)], static_cast<uint64_t>(index)};
  }

 private:
  std::array<uint64_t, 3> seeds_{};
};

/// Draws `count` distinct numbers of 0 ... n - 1, every ordered choice equally likely, and calls emit(place, number)
/// for each. O(count) for any n: a Fisher-Yates shuffle that stores only the entries it has moved. count <= n.
template <class Emit>
void draw_distinct(RandomStream& random, uint32_t n, uint32_t count, const Emit& emit) {
  struct Moved {
    int64_t place = -1;
    uint32_t number = 0;
  };
  const size_t mask = std::bit_ceil(size_t{count} * 2 + 1) - 1;
  std::vector<Moved> table(mask + 1);  // open addressing: at most half full
  const auto entry = [&](uint32_t place) -> Moved& {
    size_t at = (place * 0x9E3779B1u >> 7) & mask;
    while (table[at].place >= 0 && table[at].place != place) at = (at + 1) & mask;
    return table[at];
  };
  const auto number_in = [](const Moved& moved, uint32_t place) { return moved.place < 0 ? place : moved.number; };
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t place = i + random.below(n - i);
    const uint32_t displaced = number_in(entry(i), i);
    Moved& drawn = entry(place);
    emit(i, number_in(drawn, place));
    drawn = {place, displaced};
  }
}

/// Draws slots without replacement, one after the other, slot i = 1, 2, ... with probability proportional to
/// i^(power - 1) among those left: the law of numpy's choice(replace=False, p=...). Weights are integers (2^40 for the
/// largest), so the draws do not depend on rounding; a Fenwick tree finds and removes a slot in O(log slots).
class SlotSampler {
 public:
  SlotSampler(int64_t most_slots, double power);

  /// Calls emit(place, slot) for `count` distinct slots of 0 ... slots - 1. count <= slots <= most_slots.
  template <class Emit>
  void draw(RandomStream& random, int64_t slots, int64_t count, const Emit& emit) const {
    // The tree of the first slots is the start of the tree of all.
    std::vector<uint64_t> tree(tree_.begin(), tree_.begin() + slots + 1);
    uint64_t total = 0;
    for (int64_t node = slots; node > 0; node &= node - 1) total += tree[node];
    for (int64_t place = 0; place < count; ++place) {
      const int64_t slot = slot_at(tree, uniform_below(random, total));
      for (int64_t node = slot + 1; node <= slots; node += node & -node) tree[node] -= weight_[slot];
      total -= weight_[slot];
      emit(place, slot);
    }
  }

 private:
  /// The slot in whose share of the cumulative weight `point` lies.
  static int64_t slot_at(const std::vector<uint64_t>& tree, uint64_t point) {
    const auto slots = static_cast<int64_t>(tree.size()) - 1;
    int64_t slot = 0;
    for (auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(slots))); step > 0; step /= 2) {
      if (slot + step <= slots && tree[slot + step] <= point) {
        slot += step;
        point -= tree[slot];
      }
    }
    return slot;
  }

  std::vector<uint64_t> weight_;  // by slot
  std::vector<uint64_t> tree_;    // node n holds the weight of slots n - lowbit(n) ... n - 1; node 0 is unused
};

}  // namespace margay
