#pragma once
#include "ops/causal_attention.h"

namespace margay {

/// Causal softmax attention of some queries only: y[r,h] = causal_attention(q, k, v, beta, options)[b,h,i] where
/// rows[r] = b L + i, and zeros where rows[r] = -1. q, k and v [B,H,L,dh], rows i32 [R], each -1 or in [0, B L), in any
/// order. Result [R,H,dh], contiguous.
///
/// What a last layer needs if only few of its tokens are read: its cost grows with R L instead of L^2. q, k and v may
/// be views (copied only if dh is not the innermost axis in memory). Their gradients are slices of one [B,L,3,H,dh]
/// buffer. Dropout leaves the weights that it leaves in causal_attention.
/// Throws OpError for shapes, dtypes, rows or options that do not fit.
Tensor selected_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& rows, const Tensor& beta,
                          const AttentionOptions& options);

namespace kernels {

/// What forward and backward read.
template <class T>
struct SelectedAttentionCall {
  AttentionShape shape;  // Lq = Lk
  const T *q, *k, *v;
  HeadStrides q_strides, k_strides, v_strides;
  const int32_t* rows;  // [R]
  int64_t R;
  double scale;
  const T* beta;  // [H] or null
  AttentionDropout dropout;
  /// On the CPU, places of `rows` by batch: those of batch b are list[start[b]] ... list[start[b + 1] - 1], where start
  /// is `lists` and list stands behind its B + 1 elements.
  int32_t* lists;

  using Tiling = AttentionTiling<acc_t<T>>;
  int64_t lists_size() const { return shape.B + 1 + R; }
  int64_t units() const { return shape.B * shape.H; }
  int64_t pieces() const { return Tiling::pieces(units()); }
  /// Multiplications of one of the matrix products.
  int64_t work() const { return R * shape.H * shape.Lk * shape.dh; }
};

template <class T>
struct SelectedAttentionFwd : SelectedAttentionCall<T> {
  T* y;                 // [R,H,dh]
  acc_t<T>* lse;        // [R,H] log of the sum of exp(scores), or null
  acc_t<T>* workspace;  // [workspace_size()]

  using typename SelectedAttentionCall<T>::Tiling;
  /// Of a piece: queries of a tile, by rows and transposed, weights, and two tiles for dropout.
  int64_t scratch_size() const {
    return 2 * this->shape.dh * Tiling::kQueries + Tiling::kTile * (this->dropout.rate > 0 ? 3 : 1);
  }
  KeyParts key_parts() const { return {this->R * this->shape.H, std::min(this->shape.Lk, this->shape.reach + 1)}; }
  int64_t workspace_size(DeviceType device) const {
    if (device == DeviceType::cuda) return key_parts().memory_size(this->shape.dh);
    return this->pieces() * scratch_size();
  }
};

template <class T>
struct SelectedAttentionBwd : SelectedAttentionCall<T> {
  const T *y, *dy;      // [R,H,dh]
  const acc_t<T>* lse;  // [R,H]
  T *dq, *dk, *dv;
  HeadStrides dq_strides, dk_strides, dv_strides;
  T* dbeta;             // [H] or null
  acc_t<T>* workspace;  // [workspace_size()]

  using typename SelectedAttentionCall<T>::Tiling;
  /// Of a piece: queries and cotangents of a tile, by rows and transposed, dq, weights and their gradients, and two
  /// tiles for dropout.
  int64_t scratch_size() const {
    return 5 * this->shape.dh * Tiling::kQueries + Tiling::kTile * (this->dropout.rate > 0 ? 4 : 2);
  }
  int64_t dbeta_begin() const { return this->pieces() * scratch_size(); }
  /// On the CPU the scratch of the pieces, and dbeta of the units; on the GPU dq [R,H,dh], delta and dbeta [R,H].
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cpu ? dbeta_begin() + this->units() : this->R * this->shape.H * (this->shape.dh + 2);
  }
};

template <class T>
void run(Cpu, const SelectedAttentionFwd<T>&);
template <class T>
void run(Cuda, const SelectedAttentionFwd<T>&);
template <class T>
void run(Cpu, const SelectedAttentionBwd<T>&);
template <class T>
void run(Cuda, const SelectedAttentionBwd<T>&);

}  // namespace kernels
}  // namespace margay
