#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/cpu/causal_attention/tile.h"
#include "ops/cpu/simd_math.h"

namespace margay::kernels::attention {

/// Maximum and sum of exp(score - maximum) of each query of a tile, over the keys seen so far.
template <class T>
struct RunningSoftmax {
  using Vec = simd::Vec<T>;
  static constexpr T kLowest = std::numeric_limits<T>::lowest();
  T maximum[kQueries<T>], sum[kQueries<T>];
  T rescale[kQueries<T>];  // what the last tile did to earlier sums: exp(old maximum - new maximum)

  RunningSoftmax() {
    std::fill_n(maximum, kQueries<T>, kLowest);
    std::fill_n(sum, kQueries<T>, T(0));
  }

  /// Turns the scores of a tile into weights exp(scale score - maximum), 0 where a query does not see a key.
  /// `tile` knows its `vectors`, and of each its range() and mask(), like a KeyTile.
  template <class Tile>
  void absorb(const Tile& tile, T scale, T* weights) {
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const auto range = tile.range(v);
      const int64_t lane = v * Vec::size;
      T* const column = weights + lane;
      const Vec before = Vec::load(maximum + lane), top = raise(before, tile, range, v, scale, column);
      const Vec factor = exp(before - top);
      Vec total = Vec::load(sum + lane) * factor;
      const auto weigh = [&](int64_t j, const auto& visible) {
        T* const at = column + j * kQueries<T>;
        const Vec weight = visible(exp(Vec::load(at) * scale - top));
        weight.store(at);
        total += weight;
      };
      const auto some = [&](int64_t j) { weigh(j, [&](Vec weight) { return select(tile.mask(v, j), weight, T(0)); }); };
      for (int64_t j = range.begin; j < range.full_begin; ++j) some(j);
      for (int64_t j = range.full_begin; j < range.full_end; ++j) weigh(j, [](Vec weight) { return weight; });
      for (int64_t j = range.full_end; j < range.end; ++j) some(j);
      top.store(maximum + lane);
      total.store(sum + lane);
      factor.store(rescale + lane);
    }
  }

 private:
  template <class Tile>
  static Vec raise(Vec top, const Tile& tile, const KeyRange& range, int64_t v, T scale, const T* column) {
    const auto score = [&](int64_t j) { return Vec::load(column + j * kQueries<T>) * scale; };
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) top = max(top, select(tile.mask(v, j), score(j), kLowest));
    };
    some(range.begin, range.full_begin);
    some(range.full_end, range.end);
    Vec other = top;  // two chains hide the latency of max
    int64_t j = range.full_begin;
    for (; j + 2 <= range.full_end; j += 2) {
      top = max(top, score(j));
      other = max(other, score(j + 1));
    }
    if (j < range.full_end) top = max(top, score(j));
    return max(top, other);
  }
};

}  // namespace margay::kernels::attention
