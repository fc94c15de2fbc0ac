#pragma once
#include "ops/attention_dropout.h"
#include "ops/landmark_blocks.h"

namespace margay {

/// What the logit g of a landmark does to the tokens of its block.
enum class LandmarkGate : uint8_t {
  grouped,   ///< one softmax over local tokens and landmarks; a landmark's share is split by a softmax inside its block
  additive,  ///< one softmax over all tokens, the scores of a block's tokens raised by g
  none,      ///< one softmax over all tokens; g is not used
};

struct LandmarkAttentionInputs {
  Tensor q;           ///< [B,H,Lq,dh], at the last Lq of Lk positions
  Tensor k, v;        ///< [B,H,Lk,dh], Lk >= Lq
  Tensor landmark_q;  ///< [B,H,Lq,dh]; undefined: q
  Tensor landmarks;   ///< [B,H,M,dh], M = Lk / block_size
  Tensor bias;        ///< [H], added to the logits of landmarks; undefined for none
  Tensor beta;        ///< [H], multiplies the scores of each head instead of options.scale; undefined for none
  Tensor blocks;      ///< i32 [B,H,Lq,K] as landmark_choice makes them; undefined: all
};

struct LandmarkAttentionOptions {
  int64_t block_size = 16;
  LandmarkGate gate = LandmarkGate::grouped;
  /// Factor of the scores, usually 1/sqrt(dh).
  double scale = 1;
  /// As in AttentionOptions: share of the weights of tokens that are set to 0.
  double dropout = 0;
  Tensor rng = {};
  uint64_t stream = 0;
};

/// Causal attention inside blocks of keys, and through landmarks to blocks before: a query at position p sees the keys
/// of its own block up to p, and the blocks m < p / block_size that `blocks` lists for it (each at most once; other
/// entries count for nothing). With scores s_j = scale q . k_j and landmark logits g_m = landmark_q . landmarks[m] +
/// bias,
///   grouped:  P = softmax({s_j}_local, {g_m}),  y = sum_local P_j v_j + sum_m P_m sum_{j in m} softmax_m(s)_j v_j,
///   additive: y = softmax({s_j}_local, {s_j + g_m(j)}) v,   none: y = softmax({s_j}) v.
/// Grouped after Mohtashami & Jaggi 2023, arXiv:2305.16300; blocks of a CAT after Li et al. 2024, arXiv:2407.05591,
/// section 5.
///
/// The choice of blocks is a constant; everything else has a gradient (none to landmarks with LandmarkGate::none). Cost
/// for a query: block_size (K + 1) scores and K logits. Nothing of the size Lq x Lk is made: what the gradient needs is
/// computed again from y and the logarithm of each query's sum. Result [B,H,Lq,dh], with the memory order [B,Lq,H,dh].
/// Results before a token do not depend on it in any bit, even where it holds NaN, as long as `blocks` does not.
/// Tensors [B,H,L,dh] may be views (copied only if dh is not the innermost axis in memory). Where Lq = Lk, the
/// gradients of q, k and v are slices of one [B,L,3,H,dh] buffer. Throws OpError for shapes, dtypes or options that do
/// not fit.
Tensor landmark_attention(const LandmarkAttentionInputs& inputs, const LandmarkAttentionOptions& options);

namespace kernels {

/// What forward and backward read.
template <class T>
struct LandmarkAttentionCall {
  LandmarkShape shape;
  int64_t K;  // entries of a list of blocks
  LandmarkGate gate;
  const T *q, *k, *v, *landmark_q, *landmarks;
  HeadStrides q_strides, k_strides, v_strides, landmark_q_strides, landmark_strides;
  double scale;
  const T *bias, *beta;   // [H] or null
  const int32_t* blocks;  // [B,H,Lq,K], or null for all
  AttentionDropout dropout;

  /// Keys that a query reads.
  int64_t reads() const {
    const int64_t retrieved = blocks ? std::min(K, shape.M) : (shape.M + 1) / 2;
    return std::min(shape.Lk, (retrieved + 1) * shape.W);
  }
  /// Multiplications of one of the products of scores.
  int64_t work() const { return shape.B * shape.H * shape.Lq * reads() * shape.dh; }
  /// Keys of a block that exist.
  int64_t columns() const { return std::min(shape.W, shape.Lk); }
  /// Queries whose scores with a block are computed at once: as many as fit the first-level cache.
  static constexpr int64_t kMostRows = 64;
  int64_t rows() const {
    constexpr int64_t most_scores = int64_t{1} << 14;
    return std::clamp<int64_t>(most_scores / std::max<int64_t>(1, LandmarkShape::padded(columns())), 4, kMostRows);
  }
  /// Of lists that say which queries of a tile read which block.
  int64_t lists_size() const { return blocks ? shape.M + 2 + shape.tile * (K + 1) : shape.tile; }
};

template <class T>
struct LandmarkAttentionFwd : LandmarkAttentionCall<T> {
  T* y;
  HeadStrides y_strides;
  acc_t<T>* lse;        // [B,H,Lq] log of the sum over what is under the outer softmax, or null
  acc_t<T>* workspace;  // [workspace_size()]
  int32_t* lists;       // [lists_total()]

  int64_t units() const { return this->shape.B * this->shape.H * this->shape.tiles(); }
  int64_t pieces() const { return LandmarkShape::pieces(units(), scratch_size()); }
  /// Of a piece: transposed keys, queries and results of some rows, weights, dropout of a row, maxima and sums of a
  /// tile.
  int64_t scratch_size() const {
    const int64_t dh = this->shape.dh, width = LandmarkShape::padded(this->columns()), rows = this->rows();
    return dh * width + 2 * rows * dh + rows * width + width + 2 * this->shape.tile;
  }
  int64_t workspace_size(DeviceType) const { return pieces() * scratch_size(); }
  int64_t lists_total() const { return pieces() * this->lists_size(); }
};

template <class T>
struct LandmarkAttentionBwd : LandmarkAttentionCall<T> {
  const T *y, *dy;
  HeadStrides y_strides, dy_strides;
  const acc_t<T>* lse;  // [B,H,Lq]
  T *dq, *dk, *dv;
  HeadStrides dq_strides, dk_strides, dv_strides;
  T* dlandmark_q;  // as dq, or null where landmark_q is q
  HeadStrides dlandmark_q_strides;
  T* dlandmarks;        // [B,H,M,dh]
  T *dbias, *dbeta;     // [H] or null
  acc_t<T>* workspace;  // [workspace_size()]
  int32_t* lists;       // [lists_total()]

  /// Groups of tiles of queries of a head that are worked on separately, where there are few heads. Each has its own
  /// dk, dv and dlandmarks; clearing and adding them is worth it where queries read many keys.
  int64_t groups() const {
    constexpr int64_t enough_units = 16, most_elements = int64_t{1} << 24, reads_per_group = 16;
    const int64_t heads = std::max<int64_t>(1, this->shape.B * this->shape.H);
    const int64_t fitting = most_elements / std::max<int64_t>(1, heads * partial_size());
    const int64_t tiles = std::max<int64_t>(1, this->shape.Lq / LandmarkShape::kSmallestTile);
    return std::clamp<int64_t>(std::min({enough_units / heads, fitting, this->reads() / reads_per_group}), 1, tiles);
  }
  int64_t units() const { return this->shape.B * this->shape.H * groups(); }
  int64_t pieces() const { return LandmarkShape::pieces(units(), scratch_size()); }
  /// Of a piece: transposed keys and values; queries, cotangents and gradients of some rows; weights and their
  /// gradients; dropout of a row; of a tile: rowsum(dy y), and gradients of landmark_q.
  int64_t scratch_size() const {
    const int64_t dh = this->shape.dh, width = LandmarkShape::padded(this->columns()), rows = this->rows();
    return 2 * dh * width + 3 * rows * dh + 2 * rows * width + width + this->shape.tile * (dh + 1);
  }
  /// dk, dv and dlandmarks of a group.
  int64_t partial_size() const { return (2 * this->shape.Lk + this->shape.M) * this->shape.dh; }
  /// The workspace holds the scratch of the pieces, the gradients of the groups, and dbias and dbeta of the units.
  int64_t partials_begin() const { return pieces() * scratch_size(); }
  int64_t sums_begin() const { return partials_begin() + (groups() > 1 ? units() * partial_size() : 0); }
  /// On the GPU: three numbers of each query, and of each block that it retrieves.
  int64_t gpu_size() const {
    const LandmarkShape& s = this->shape;
    return 3 * s.B * s.H * s.Lq * (1 + (this->blocks ? this->K : s.M));
  }
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? gpu_size() : sums_begin() + 2 * units();
  }
  int64_t lists_total() const { return pieces() * this->lists_size(); }
};

template <class T>
void run(Cpu, const LandmarkAttentionFwd<T>&);
template <class T>
void run(Cuda, const LandmarkAttentionFwd<T>&);
template <class T>
void run(Cpu, const LandmarkAttentionBwd<T>&);
template <class T>
void run(Cuda, const LandmarkAttentionBwd<T>&);

}  // namespace kernels
}  // namespace margay
