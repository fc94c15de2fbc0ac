#pragma once
#include "ops/landmark_blocks.h"

namespace margay {

/// The blocks that each query retrieves: those of the `count` largest q[b,h,i] . landmarks[b,h,m] among the complete
/// blocks m before its own; of equals the lower m, and a NaN counts as larger than every number.
///
/// q [B,H,Lq,dh] stands at the last Lq of `seq_len` positions, in blocks of `block_size` tokens; landmarks [B,H,M,dh],
/// M = seq_len / block_size. Result i32 [B,H,Lq,count], contiguous, ascending, -1 at the end of a list where there are
/// fewer blocks. Without gradient. q and landmarks may be views (copied only if dh is not the innermost axis in
/// memory). Throws OpError for shapes, dtypes or sizes that do not fit.
Tensor landmark_choice(const Tensor& q, const Tensor& landmarks, int64_t seq_len, int64_t block_size, int64_t count);

namespace kernels {

template <class T>
struct LandmarkChoice {
  LandmarkShape shape;
  int64_t count;
  const T *q, *landmarks;
  HeadStrides q_strides, landmark_strides;
  int32_t* blocks;      // [B,H,Lq,count]
  acc_t<T>* workspace;  // [workspace_size()]

  static constexpr int64_t kRows = 64, kColumns = 256;  // of a tile of products
  int64_t units() const { return shape.B * shape.H * shape.tiles(); }
  int64_t pieces() const { return LandmarkShape::pieces(units(), scratch_size()); }
  /// Of a piece: transposed landmarks, products, and the largest ones of each query.
  int64_t scratch_size() const { return (shape.dh + kRows) * kColumns + shape.tile * count; }
  /// On the GPU: the largest ones of all queries.
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? shape.B * shape.H * shape.Lq * count : pieces() * scratch_size();
  }
};
template <class T>
void run(Cpu, const LandmarkChoice<T>&);
template <class T>
void run(Cuda, const LandmarkChoice<T>&);

}  // namespace kernels
}  // namespace margay
