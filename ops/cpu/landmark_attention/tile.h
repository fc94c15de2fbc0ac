#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/cpu/band_product.h"
#include "ops/cpu/dropout_mask.h"
#include "ops/cpu/head_rows.h"
#include "ops/cpu/workspace.h"
#include "ops/landmark_attention.h"

// What forward and backward share. A tile of queries goes through the blocks of keys from its own last one back to the
// first. At each block come the queries that stand in it, then those that retrieve it, in groups: a row of scores per
// query, a lane per key. What one query's row holds does not depend on the other rows of its group, nor does the order
// in which it meets its blocks (its own one first), so that choices of later queries change no bit of it.

namespace margay::kernels::landmark {

/// Queries first ... first + count - 1 of a head.
struct QueryTile {
  int64_t first, count, position;

  QueryTile(const LandmarkShape& s, int64_t index)
      : first(index * s.tile), count(std::min(s.tile, s.Lq - first)), position(s.offset() + first) {}
  /// The first query of the tile that stands behind block m.
  int64_t behind(const LandmarkShape& s, int64_t m) const {
    return std::clamp<int64_t>((m + 1) * s.W - position, 0, count);
  }
};

/// Some queries of a tile that see one block, or part of it.
struct Group {
  const int32_t* queries;  // places in the tile, ascending
  int64_t count;
  int64_t block, columns;  // the first `columns` keys of the block are seen by at least one of them
  bool local;              // they stand in this block
  Band sees;

  /// Keys that query r of the group sees.
  int64_t visible(int64_t r) const { return local ? std::min(columns, r + sees.high + 1) : columns; }
  bool contiguous() const { return queries[count - 1] - queries[0] == count - 1; }
};

/// For every block, which queries of a tile retrieve it.
class Readers {
 public:
  /// `memory` holds LandmarkAttentionCall::lists_size() elements; `blocks` the lists of the tile's queries, or null.
  Readers(const LandmarkShape& s, const QueryTile& tile, const int32_t* blocks, int64_t K, int32_t* memory)
      : s_(s), tile_(tile), places_(memory) {
    for (int64_t i = 0; i < tile.count; ++i) places_[i] = static_cast<int32_t>(i);
    if (!blocks) return;
    begins_ = memory + s.tile;
    queries_ = begins_ + s.M + 2;
    sort(blocks, K);
  }

  /// Places of all queries of the tile.
  const int32_t* places() const { return places_; }
  /// Of block m: how many, and their places, ascending.
  int64_t count(int64_t m) const { return begins_ ? begins_[m + 1] - begins_[m] : tile_.count - tile_.behind(s_, m); }
  const int32_t* of(int64_t m) const { return begins_ ? queries_ + begins_[m] : places_ + tile_.behind(s_, m); }

 private:
  // A counting sort by block: two more entries in front shift the counts, so that they end up as beginnings.
  void sort(const int32_t* blocks, int64_t K) {
    std::fill_n(begins_, s_.M + 2, 0);
    for_entries(blocks, K, [&](int64_t, int32_t m) { ++begins_[m + 2]; });
    for (int64_t m = 2; m < s_.M + 2; ++m) begins_[m] += begins_[m - 1];
    for_entries(blocks, K, [&](int64_t i, int32_t m) { queries_[begins_[m + 1]++] = static_cast<int32_t>(i); });
  }
  template <class Body>
  void for_entries(const int32_t* blocks, int64_t K, const Body& body) const {
    for (int64_t i = 0; i < tile_.count; ++i) {
      const int64_t before = (tile_.position + i) / s_.W;
      for (int64_t n = 0; n < K; ++n)
        if (const int32_t m = blocks[i * K + n]; m >= 0 && m < before) body(i, m);
    }
  }

  const LandmarkShape& s_;
  const QueryTile& tile_;
  int32_t *places_, *begins_ = nullptr, *queries_ = nullptr;
};

/// Calls prepare(block, columns) for every block that the tile sees, last one first, then body(group) for its groups of
/// at most `rows` queries.
template <class Prepare, class Body>
void for_groups(const LandmarkShape& s, const QueryTile& tile, const Readers& readers, int64_t rows,
                const Prepare& prepare, const Body& body) {
  const int64_t end = tile.position + tile.count;
  for (int64_t m = (end - 1) / s.W; m >= 0; --m) {
    const int64_t first_key = m * s.W, local_begin = std::clamp<int64_t>(first_key - tile.position, 0, tile.count);
    const int64_t local_end = tile.behind(s, m), retrieving = m < s.M ? readers.count(m) : 0;
    if (local_begin == local_end && retrieving == 0) continue;
    prepare(m, std::min(s.W, end - first_key));
    for (int64_t i = local_begin; i < local_end; i += rows) {
      const int64_t count = std::min(rows, local_end - i), high = tile.position + i - first_key;
      body(Group{readers.places() + i, count, m, high + count, true, {kWholeBand.low, high}});
    }
    for (int64_t i = 0; i < retrieving; i += rows)
      body(Group{readers.of(m) + i, std::min(rows, retrieving - i), m, s.W, false, kWholeBand});
  }
}

/// The rows of a tile that belong to a group: where they lie, or copies in `memory` where they do not follow each
/// other.
template <class T>
Rows<const T> gather(const Group& group, const Rows<const T>& tile, int64_t dh, T* memory) {
  if (group.contiguous()) return tile.from(group.queries[0]);
  for (int64_t r = 0; r < group.count; ++r) std::copy_n(tile[group.queries[r]], dh, memory + r * dh);
  return {memory, dh};
}

/// products[r, j] = rows[r] . (row j of what was transposed) for the keys that the group sees, and more.
template <class T>
void multiply(const Group& group, const Rows<const T>& rows, const T* transposed, int64_t width, int64_t dh,
              T* products) {
  band_product<Layout::rows>(BandProduct<T>{.a = rows.data,
                                            .a_row = rows.stride,
                                            .b = transposed,
                                            .b_row = width,
                                            .c = products,
                                            .c_row = width,
                                            .rows = group.count,
                                            .columns = group.columns,
                                            .depth = dh,
                                            .band = kWholeBand});
}

/// to[r] = after[r] * sum over the keys j that query r sees of weights[r, j] from[j].
template <class T>
void gather_from_keys(const Group& group, const T* weights, int64_t width, const Rows<const T>& from, int64_t dh,
                      const Rows<T>& to, const T* after = nullptr) {
  band_product<Layout::rows>(BandProduct<T>{.a = weights,
                                            .a_row = width,
                                            .b = from.data,
                                            .b_row = from.stride,
                                            .c = to.data,
                                            .c_row = to.stride,
                                            .rows = group.count,
                                            .columns = dh,
                                            .depth = group.columns,
                                            .band = group.sees,
                                            .after = after});
}

/// to[j] += sum over the queries r that see key j of weights[r, j] from[r].
template <class T>
void gather_from_queries(const Group& group, const T* weights, int64_t width, const Rows<const T>& from, int64_t dh,
                         const Rows<T>& to) {
  band_product<Layout::columns>(BandProduct<T>{.a = weights,
                                               .a_row = width,
                                               .b = from.data,
                                               .b_row = from.stride,
                                               .c = to.data,
                                               .c_row = to.stride,
                                               .rows = group.columns,
                                               .columns = dh,
                                               .depth = group.count,
                                               .band = group.sees.transposed(),
                                               .add = true});
}

/// to[d] = a to[d] + b from[d].
template <class T>
void combine_rows(T a, T* to, T b, const T* from, int64_t dh) {
  using Vec = simd::Vec<T>;
  for (int64_t d = 0; d < dh; d += Vec::size) {
    const int64_t n = dh - d;
    (Vec::load(to + d, n) * a + Vec::load(from + d, n) * b).store(to + d, n);
  }
}

template <class T>
void scale_row(T* row, T factor, int64_t dh) {
  using Vec = simd::Vec<T>;
  for (int64_t d = 0; d < dh; d += Vec::size) (Vec::load(row + d, dh - d) * factor).store(row + d, dh - d);
}

/// A head, and a tile of its queries: rows of everything that both directions read.
template <class T>
struct HeadTile {
  int64_t row;  // of all heads of all batches
  QueryTile tile;
  Rows<const T> q, landmark_q;    // of the tile
  Rows<const T> k, v, landmarks;  // of the head
  const int32_t* blocks;          // lists of the tile's queries, or null
  T scale, bias;

  HeadTile(const LandmarkAttentionCall<T>& a, int64_t row, int64_t index)
      : row(row),
        tile(a.shape, index),
        q(rows_of(a, a.q, a.q_strides).from(tile.first)),
        landmark_q(rows_of(a, a.landmark_q, a.landmark_q_strides).from(tile.first)),
        k(rows_of(a, a.k, a.k_strides)),
        v(rows_of(a, a.v, a.v_strides)),
        landmarks(rows_of(a, a.landmarks, a.landmark_strides)),
        blocks(a.blocks ? a.blocks + (row * a.shape.Lq + tile.first) * a.K : nullptr),
        scale(a.beta ? a.beta[row % a.shape.H] : T(a.scale)),
        bias(a.bias ? a.bias[row % a.shape.H] : T(0)) {}

  template <class U>
  Rows<U> rows_of(const LandmarkAttentionCall<T>& a, U* data, const HeadStrides& strides) const {
    return head_rows(data, strides, row / a.shape.H, row % a.shape.H);
  }
  /// The logit of block m for query i of the tile.
  T gate(int64_t i, int64_t m, int64_t dh) const { return dot(landmark_q[i], landmarks[m], dh) + bias; }
};

/// What dropout multiplies the weights of one query after the other with.
template <class T>
class DropoutRow {
 public:
  DropoutRow(const LandmarkAttentionCall<T>& a, T* memory)
      : mask_(a.dropout.rate > 0 ? DropoutMask::make(a.dropout.rng, a.dropout.stream, a.dropout.rate) : DropoutMask{}),
        scale_(T(1 / (1 - a.dropout.rate))),
        shape_(a.shape),
        factors_(a.dropout.rate > 0 ? memory : nullptr) {}

  /// Factors of the keys of block m for query i of the tile; null without dropout.
  const T* make(const HeadTile<T>& at, int64_t i, int64_t m, int64_t count) const {
    if (!factors_) return nullptr;
    const int64_t element = (at.row * shape_.Lq + at.tile.first + i) * shape_.Lk + m * shape_.W;
    dropout_factors(mask_, scale_, element, count, factors_);
    return factors_;
  }

 private:
  DropoutMask mask_;
  T scale_;
  const LandmarkShape& shape_;
  T* factors_;
};

}  // namespace margay::kernels::landmark
