#pragma once
#include "engine/op.h"
#include "ops/heads.h"

namespace margay {

/// Landmarks: a filter as long as a block, of which only the outputs at the ends of blocks are computed:
/// y[b,h,m] = sum over w < W of F[h,w] k[b,h,m W + W - 1 - w], tap 0 weighs the last token of a block.
///
/// k [B,H,L,dh]; weight [W] (one filter for all heads) or [H,W], W > 0 the tokens of a block. Result [B,H,L / W,dh],
/// contiguous; tokens behind the last complete block count for nothing. Every sum runs in the order of the tokens, so
/// the blocks of a sequence fed one by one give the bits of the whole. k may be a view (copied only if dh is not the
/// innermost axis in memory).
/// Throws OpError for shapes or dtypes that do not fit.
Tensor landmark_pool(const Tensor& k, const Tensor& weight);

namespace kernels {

struct LandmarkPoolShape {
  int64_t B, H, L, dh, W;
  int64_t filters;  // 1 or H

  static constexpr int64_t kMostPieces = 64;
  static constexpr int64_t kSerialWork = int64_t{1} << 16;  // less is done before other threads would have started
  /// Landmarks of a head.
  int64_t M() const { return L / W; }
  int64_t work() const { return B * H * L * dh; }
  /// All landmarks; a piece takes some neighbouring ones.
  int64_t units() const { return B * H * M(); }
  int64_t filter_size() const { return filters * W; }
  /// Pieces of the gradient's work, each with sums of its own.
  int64_t pieces() const {
    constexpr int64_t most_elements = int64_t{1} << 22;
    const int64_t fitting = std::max<int64_t>(1, most_elements / std::max<int64_t>(1, filter_size()));
    return std::min({units(), kMostPieces, fitting});
  }
};

template <class T>
struct LandmarkPoolFwd {
  LandmarkPoolShape shape;
  const T* k;
  HeadStrides k_strides;
  const T* weight;
  T* y;
  acc_t<T>* workspace;  // the filters, in the order of the tokens

  static int64_t workspace_size(const LandmarkPoolShape& s) { return s.filter_size(); }
};

/// Null pointers for gradients that are not wanted.
template <class T>
struct LandmarkPoolBwd {
  LandmarkPoolShape shape;
  const T *k, *dy;
  HeadStrides k_strides, dy_strides;
  const T* weight;
  T* dk;
  HeadStrides dk_strides;
  T* dweight;
  acc_t<T>* workspace;  // the sums of every piece

  static int64_t workspace_size(const LandmarkPoolShape& s) { return s.pieces() * s.filter_size(); }
};

template <class T>
void run(Cpu, const LandmarkPoolFwd<T>&);
template <class T>
void run(Cuda, const LandmarkPoolFwd<T>&);
template <class T>
void run(Cpu, const LandmarkPoolBwd<T>&);
template <class T>
void run(Cuda, const LandmarkPoolBwd<T>&);

}  // namespace kernels
}  // namespace margay
