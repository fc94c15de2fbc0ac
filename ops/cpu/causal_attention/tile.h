#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/causal_attention.h"
#include "ops/cpu/band_product.h"
#include "ops/cpu/dropout_mask.h"
#include "ops/cpu/head_rows.h"
#include "ops/cpu/simd.h"

// What forward and backward share: one tile of queries against one tile of keys. A tile of scores holds a row per key
// and a lane per query, so that everything about the softmax of a query stays inside a lane.

namespace margay::kernels::attention {

template <class T>
inline constexpr int64_t kQueries = AttentionTiling<T>::kQueries;
template <class T>
inline constexpr int64_t kKeys = AttentionTiling<T>::kKeys;

/// Queries first ... first + count - 1 of a head, and the keys that at least one of them sees.
template <class T>
struct QueryTile {
  int64_t first, count, position, keys_begin, keys_end;

  QueryTile(const AttentionShape& s, int64_t index)
      : first(index * kQueries<T>),
        count(std::min(kQueries<T>, s.Lq - first)),
        position(s.offset() + first),
        keys_begin(std::max<int64_t>(0, position - s.reach)),
        keys_end(position + count) {}
  /// Vectors of lanes in use.
  int64_t vectors() const { return (count + simd::Vec<T>::size - 1) / simd::Vec<T>::size; }
};

/// Keys [begin, end) of a tile that some query of a vector sees, and [full_begin, full_end) that all of them see.
struct KeyRange {
  int64_t begin, full_begin, full_end, end;
};

/// The tile of `queries` against the keys first ... first + count - 1.
template <class T>
struct KeyTile {
  using Vec = simd::Vec<T>;
  int64_t first, count, queries, vectors;
  Band sees;  // query i of the tile sees the keys i + low ... i + high of the tile

  KeyTile(const AttentionShape& s, const QueryTile<T>& queries, int64_t first, int64_t end)
      : first(first),
        count(std::min(kKeys<T>, end - first)),
        queries(queries.count),
        vectors(queries.vectors()),
        sees{queries.position - first - s.reach, queries.position - first} {}

  KeyRange range(int64_t v) const {
    const int64_t i = v * Vec::size, last = i + Vec::size - 1;
    KeyRange r;
    r.begin = std::clamp<int64_t>(i + sees.low, 0, count);
    r.end = std::clamp<int64_t>(last + sees.high + 1, r.begin, count);
    r.full_begin = std::clamp(last + sees.low, r.begin, r.end);
    r.full_end = std::clamp(i + sees.high + 1, r.full_begin, r.end);
    return r;
  }
  /// The queries of vector `v` that see key j.
  simd::Mask<T> mask(int64_t v, int64_t j) const {
    const int64_t i = v * Vec::size;
    const auto limit = [](int64_t lane) { return Vec(T(std::clamp<int64_t>(lane, -1, Vec::size))); };
    const Vec lane = Vec::iota();
    return (lane >= limit(j - sees.high - i)) & (lane <= limit(j - sees.low - i));
  }
};

/// out[j, i] = keys[j] . queries[i] for the keys of a tile, in lanes that hold a query which sees key j, and in more.
template <class T>
void scores(const KeyTile<T>& tile, const Rows<const T>& keys, const T* transposed_queries, int64_t dh, T* out) {
  constexpr int64_t size = simd::Vec<T>::size;
  const auto first_vector = [&](int64_t j) {
    return std::min(std::max<int64_t>(0, j - tile.sees.high) / size, tile.vectors);
  };
  const auto end_vector = [&](int64_t j) {
    const int64_t last = std::min(j - tile.sees.low, size * tile.vectors - 1);
    return last < 0 ? 0 : last / size + 1;
  };
  for (int64_t begin = 0, end; begin < tile.count; begin = end) {
    const int64_t low = first_vector(begin), high = end_vector(std::min(begin + size, tile.count) - 1);
    end = std::min(begin + size, tile.count);
    while (end < tile.count && first_vector(end) == low && end_vector(std::min(end + size, tile.count) - 1) == high)
      end = std::min(end + size, tile.count);
    if (low >= high) continue;
    band_product<Layout::rows>(BandProduct<T>{.a = keys[tile.first + begin],
                                              .a_row = keys.stride,
                                              .b = transposed_queries + low * size,
                                              .b_row = kQueries<T>,
                                              .c = out + begin * kQueries<T> + low * size,
                                              .c_row = kQueries<T>,
                                              .rows = end - begin,
                                              .columns = (high - low) * size,
                                              .depth = dh,
                                              .band = kWholeBand});
  }
}

/// to[i] = after[i] * (before[i] * to[i] + sum over the keys j that query i sees of weights[j, i] from[j]), without the
/// first summand unless `add`. `from` begins at the tile's first key, `to` at its first query.
template <class T>
void gather_from_keys(const KeyTile<T>& tile, const T* weights, const Rows<const T>& from, int64_t dh,
                      const Rows<T>& to, bool add, const T* before = nullptr, const T* after = nullptr) {
  band_product<Layout::columns>(BandProduct<T>{.a = weights,
                                               .a_row = kQueries<T>,
                                               .b = from.data,
                                               .b_row = from.stride,
                                               .c = to.data,
                                               .c_row = to.stride,
                                               .rows = tile.queries,
                                               .columns = dh,
                                               .depth = tile.count,
                                               .band = tile.sees,
                                               .add = add,
                                               .before = before,
                                               .after = after});
}

/// The other way round: to[j] = to[j] + sum over the queries i that see key j of weights[j, i] from[i].
template <class T>
void gather_from_queries(const KeyTile<T>& tile, const T* weights, const Rows<const T>& from, int64_t dh,
                         const Rows<T>& to, bool add) {
  band_product<Layout::rows>(BandProduct<T>{.a = weights,
                                            .a_row = kQueries<T>,
                                            .b = from.data,
                                            .b_row = from.stride,
                                            .c = to.data,
                                            .c_row = to.stride,
                                            .rows = tile.count,
                                            .columns = dh,
                                            .depth = tile.queries,
                                            .band = tile.sees.transposed(),
                                            .add = add});
}

template <class T>
void scale_row(T* row, T factor, int64_t dh) {
  using Vec = simd::Vec<T>;
  for (int64_t d = 0; d < dh; d += Vec::size) (Vec::load(row + d, dh - d) * factor).store(row + d, dh - d);
}

/// What dropout multiplies the weights of tiles with: 0 or 1 / (1 - rate).
template <class T>
class DropoutFactors {
 public:
  /// `memory` holds two tiles.
  DropoutFactors(const AttentionShape& s, const AttentionDropout& dropout, T* memory)
      : s_(s),
        mask_(DropoutMask::make(dropout.rng, dropout.stream, dropout.rate)),
        scale_(T(1 / (1 - dropout.rate))),
        rows_(memory),
        factors_(memory + kQueries<T> * kKeys<T>) {}

  /// The factors of the queries query(0) ... query(queries - 1) of head `head` (of all batches) for `keys` keys from
  /// `first` on, laid out as the scores.
  template <class Query>
  const T* make(int64_t head, int64_t queries, const Query& query, int64_t first, int64_t keys) const {
    for (int64_t i = 0; i < queries; ++i)
      dropout_factors(mask_, scale_, (head * s_.Lq + query(i)) * s_.Lk + first, keys, rows_ + i * kKeys<T>);
    pack_transposed({rows_, kKeys<T>}, queries, keys, factors_, kQueries<T>);
    return factors_;
  }
  const T* make(int64_t head, const QueryTile<T>& queries, const KeyTile<T>& tile) const {
    const auto query = [&](int64_t i) { return queries.first + i; };
    return make(head, queries.count, query, tile.first, tile.count);
  }

 private:
  const AttentionShape& s_;
  DropoutMask mask_;
  T scale_;
  T *rows_, *factors_;
};

/// Multiplies the weights of a tile with what dropout leaves of them; their sums are not changed.
template <class T, template <class> class Tile>
void thin(const Tile<T>& tile, const T* factors, T* weights) {
  using Vec = simd::Vec<T>;
  for (int64_t v = 0; v < tile.vectors; ++v) {
    const KeyRange range = tile.range(v);
    for (int64_t j = range.begin; j < range.end; ++j) {
      const int64_t at = j * kQueries<T> + v * Vec::size;
      (Vec::load(weights + at) * Vec::load(factors + at)).store(weights + at);
    }
  }
}

}  // namespace margay::kernels::attention
