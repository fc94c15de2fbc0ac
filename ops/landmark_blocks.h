#pragma once
#include "engine/op.h"
#include "ops/heads.h"

// What the ops on landmarks have in common: how queries and blocks of keys stand to each other.

namespace margay::kernels {

/// Queries at the last Lq positions of Lk keys; keys m W ... m W + W - 1 are block m. A query at position p sees its
/// own block p / W up to itself, and of the blocks before it those that it has chosen.
struct LandmarkShape {
  int64_t B, H, Lq, Lk, dh;
  int64_t M;         // landmarks, of the complete blocks
  int64_t W;         // tokens of a block
  int64_t tile = 0;  // queries of a head that are worked on together: many, so that many choose the same block

  static constexpr int64_t kSmallestTile = 64;
  static constexpr int64_t kSerialWork = int64_t{1} << 17;  // less is done before other threads would have started
  /// Position of query 0.
  int64_t offset() const { return Lk - Lq; }
  /// Cuts the queries of a head into tiles of about this many.
  void cut(int64_t queries) { tile = std::clamp<int64_t>(queries, kSmallestTile, 1024); }
  /// Cuts the queries of all heads into enough tiles for several threads.
  void cut() { cut(B * H * Lq / 32); }
  int64_t tiles() const { return (Lq + tile - 1) / tile; }
  /// Pieces of work on so many units, each with scratch memory of its own.
  static int64_t pieces(int64_t units, int64_t scratch_size) {
    constexpr int64_t most = 64, most_elements = int64_t{1} << 24;
    return std::min({units, most, std::max<int64_t>(1, most_elements / std::max<int64_t>(1, scratch_size))});
  }
  /// Elements of a row that is filled up to whole vectors.
  static int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
};

}  // namespace margay::kernels
