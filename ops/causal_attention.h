#pragma once
#include "engine/op.h"
#include "ops/attention_dropout.h"
#include "ops/heads.h"
#include "ops/precision.h"

namespace margay {

struct AttentionOptions {
  /// Factor of the scores, usually 1/sqrt(dh).
  double scale = 1;
  /// 0: a query sees every key up to its own position p; w > 0: the keys p - w ... p.
  int64_t window = 0;
  /// Share of the attention weights that are set to 0 (the others are divided by 1 - dropout). Weight (b, h, i, j) is
  /// element ((b * H + h) * Lq + i) * Lk + j of the dropout mask of `stream`, see ops/dropout.h.
  double dropout = 0;
  /// i64 [2] {seed, step} on the device of q; needed if dropout > 0.
  Tensor rng = {};
  uint64_t stream = 0;
};

/// Causal softmax attention: y[b,h,i] = sum over j of P[i,j] v[b,h,j], P = softmax over the visible keys j of
/// scale q[b,h,i] . k[b,h,j]. q [B,H,Lq,dh], k and v [B,H,Lk,dh], Lk >= Lq: query i stands at position Lk - Lq + i.
/// `beta` [H], if defined, multiplies the scores of each head instead of options.scale, and gets a gradient.
///
/// Result [B,H,Lq,dh], with the memory order [B,Lq,H,dh]: merging the heads is a view. No Lq x Lk tensor is made: tiles
/// are computed when needed (Dao et al. 2022, arXiv:2205.14135), and masked tiles are skipped. Results before a token
/// do not depend on it in any bit, even where it holds NaN. q, k and v may be views (copied only if dh is not the
/// innermost axis in memory). Where Lq = Lk, the gradients of q, k and v are slices of one [B,L,3,H,dh] buffer.
/// A GPU multiplies bf16 tensors, and f32 tensors whose factors product_precision() lets it round, on tensor cores
/// where dh is a multiple of 16 up to 128; sums are f32. The CPU ignores that setting here.
/// Throws OpError for shapes, dtypes or options that do not fit.
Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                        const AttentionOptions& options);

namespace kernels {

struct AttentionShape {
  int64_t B, H, Lq, Lk, dh;
  int64_t reach;  // a query at position p sees the keys p - reach ... p

  /// Position of query 0.
  int64_t offset() const { return Lk - Lq; }
  /// Multiplications of one of the matrix products, masked ones included.
  int64_t work() const { return B * H * Lq * std::min(Lk, reach + Lq) * dh; }
  /// Pairs of a query and a key that it sees.
  int64_t pairs() const {
    const int64_t growing = std::clamp<int64_t>(reach - offset(), 0, Lq);  // queries that see the first key
    return B * H * (growing * (offset() + 1) + growing * (growing - 1) / 2 + (Lq - growing) * (reach + 1));
  }
};

/// How a GPU cuts the keys of single queries, so that few of them occupy it: a part leaves its sums, their maximum and
/// their total, dh + 2 elements of memory.
struct KeyParts {
  static constexpr int64_t kMostQueries = 4;  // of a head; more are worked on in tiles
  static constexpr int64_t kMostHead = 2048;  // elements of a head
  int64_t units, count = 1;

  /// `units`: queries times heads; they see `keys` keys at most.
  KeyParts(int64_t units, int64_t keys) : units(units) {
    constexpr int64_t enough_blocks = 512, fewest_keys = 256, most = 256;
    count = std::clamp<int64_t>(std::min(enough_blocks / std::max<int64_t>(1, units), keys / fewest_keys), 1, most);
  }
  int64_t memory_size(int64_t dh) const { return count > 1 ? units * count * (dh + 2) : 0; }
};

/// Sizes of tiles and pieces on the CPU, a function of the shape only.
template <class T>
struct AttentionTiling {
  static constexpr int64_t kQueries = 256 / sizeof(T);  // four vectors
  static constexpr int64_t kKeys = 64;
  static constexpr int64_t kTile = kQueries * kKeys;
  static constexpr int64_t kMostPieces = 64;                // each has its own scratch memory
  static constexpr int64_t kSerialWork = int64_t{1} << 17;  // less is done before other threads would have started

  static int64_t tiles(const AttentionShape& s) { return (s.Lq + kQueries - 1) / kQueries; }
  static int64_t pieces(int64_t units) { return std::min(units, kMostPieces); }
};

template <class T>
struct CausalAttentionFwd {
  AttentionShape shape;
  const T *q, *k, *v;
  HeadStrides q_strides, k_strides, v_strides;
  double scale;
  const T* beta;  // [H] or null
  AttentionDropout dropout;
  T* y;
  HeadStrides y_strides;
  acc_t<T>* lse;                         // [B,H,Lq] log of the sum of exp(scores), or null
  acc_t<T>* workspace;                   // [workspace_size()]
  Precision precision = Precision::f32;  // of the GPU's products of floats

  using Tiling = AttentionTiling<acc_t<T>>;
  /// Parts into which the keys of a tile of queries are cut, where there are few tiles and many keys (decoding).
  int64_t parts() const {
    constexpr int64_t enough_tiles = 16, keys_per_part = 1024;
    const int64_t tiles = std::max<int64_t>(1, shape.B * shape.H * Tiling::tiles(shape));
    const int64_t keys = std::min(shape.Lk, shape.reach + Tiling::kQueries);
    return std::clamp<int64_t>(std::min(enough_tiles / tiles, keys / keys_per_part), 1, enough_tiles);
  }
  int64_t units() const { return shape.B * shape.H * Tiling::tiles(shape) * parts(); }
  /// Of a piece: transposed queries, weights, and two tiles for dropout.
  int64_t scratch_size() const { return shape.dh * Tiling::kQueries + Tiling::kTile * (dropout.rate > 0 ? 3 : 1); }
  /// Of a unit, if there are several parts: results, and maximum and sum of each row.
  int64_t partial_size() const { return (shape.dh + 2) * Tiling::kQueries; }
  int64_t partials_begin() const { return Tiling::pieces(units()) * scratch_size(); }
  KeyParts key_parts() const { return {shape.B * shape.H * shape.Lq, std::min(shape.Lk, shape.reach + 1)}; }
  int64_t workspace_size(DeviceType device) const {
    if (device == DeviceType::cuda) return key_parts().memory_size(shape.dh);
    return partials_begin() + (parts() > 1 ? units() * partial_size() : 0);
  }
};

template <class T>
struct CausalAttentionBwd {
  AttentionShape shape;
  const T *q, *k, *v, *y, *dy;
  HeadStrides q_strides, k_strides, v_strides, y_strides, dy_strides;
  double scale;
  const T* beta;  // [H] or null
  AttentionDropout dropout;
  const acc_t<T>* lse;  // [B,H,Lq]
  T *dq, *dk, *dv;
  HeadStrides dq_strides, dk_strides, dv_strides;
  T* dbeta;                              // [H] or null
  acc_t<T>* workspace;                   // [workspace_size()]
  Precision precision = Precision::f32;  // of the GPU's products of floats

  using Tiling = AttentionTiling<acc_t<T>>;
  /// Groups of query tiles of a head that are worked on separately, where there are few heads. Each has its own dk, dv.
  int64_t groups() const {
    constexpr int64_t enough_units = 16, most_elements = int64_t{1} << 24;
    const int64_t heads = std::max<int64_t>(1, shape.B * shape.H);
    const int64_t fitting = most_elements / std::max<int64_t>(1, heads * partial_size());
    return std::clamp<int64_t>(std::min(enough_units / heads, fitting), 1, std::max<int64_t>(1, Tiling::tiles(shape)));
  }
  int64_t units() const { return shape.B * shape.H * groups(); }
  /// Of a piece: transposed queries and cotangents, weights and their gradients, and two tiles for dropout.
  int64_t scratch_size() const { return 2 * shape.dh * Tiling::kQueries + Tiling::kTile * (dropout.rate > 0 ? 4 : 2); }
  /// dk and dv of a group.
  int64_t partial_size() const { return 2 * shape.Lk * shape.dh; }
  /// The workspace holds the scratch of the pieces, dk and dv of the groups, and dbeta of the units.
  int64_t partials_begin() const { return Tiling::pieces(units()) * scratch_size(); }
  int64_t dbeta_begin() const { return partials_begin() + (groups() > 1 ? units() * partial_size() : 0); }
  /// On the GPU: two numbers of each query.
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? 2 * shape.B * shape.H * shape.Lq : dbeta_begin() + units();
  }
};

template <class T>
void run(Cpu, const CausalAttentionFwd<T>&);
template <class T>
void run(Cuda, const CausalAttentionFwd<T>&);
template <class T>
void run(Cpu, const CausalAttentionBwd<T>&);
template <class T>
void run(Cuda, const CausalAttentionBwd<T>&);

}  // namespace kernels
}  // namespace margay
