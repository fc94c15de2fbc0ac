#pragma once
#include "ops/cuda/warp_row.cuh"
#include "ops/dropout.h"
#include "ops/landmark_attention.h"

// What the passes of landmark attention share: a warp has one row of queries, keys or landmarks.

namespace margay::kernels::landmark {

inline constexpr int64_t kWarps = cuda::kThreads / cuda::kWarp;

template <class T>
__device__ T* row_of(T* data, const HeadStrides& strides, int64_t H, int64_t head, int64_t row) {
  return data + head / H * strides.batch + head % H * strides.head + row * strides.row;
}

/// One query of a head of all batches: the keys it sees itself, and the blocks it retrieves.
template <class T>
struct Query {
  using A = acc_t<T>;
  const LandmarkAttentionCall<T>& a;
  int64_t index, head, i, position, local;  // index: of all queries; local: first key of the own block
  A scale, bias;
  DropoutMask mask{};

  __device__ Query(const LandmarkAttentionCall<T>& a, int64_t index)
      : a(a), index(index), head(index / a.shape.Lq), i(index % a.shape.Lq) {
    const LandmarkShape& s = a.shape;
    position = s.Lk - s.Lq + i;
    local = position / s.W * s.W;
    scale = a.beta ? A(a.beta[head % s.H]) : A(a.scale);
    bias = a.bias ? A(a.bias[head % s.H]) : A(0);
    if (a.dropout.rate > 0) mask = DropoutMask::make(a.dropout.rng, a.dropout.stream, a.dropout.rate);
  }
  __device__ int64_t slots() const { return a.blocks ? a.K : a.shape.M; }
  /// The block in a slot of the list, -1 for none.
  __device__ int64_t block(int64_t slot) const {
    const int64_t m = a.blocks ? a.blocks[index * a.K + slot] : slot;
    return m >= 0 && m < position / a.shape.W ? m : -1;
  }
  /// What dropout makes of the weight of key j.
  __device__ A factor(int64_t j) const {
    if (a.dropout.rate <= 0) return A(1);
    return mask.keeps_element(static_cast<uint64_t>(index * a.shape.Lk + j)) ? A(1 / (1 - a.dropout.rate)) : A(0);
  }
  template <int R>
  __device__ WarpRow<A, R> q() const {
    return {row_of(a.q, a.q_strides, a.shape.H, head, i), a.shape.dh};
  }
  template <int R>
  __device__ WarpRow<A, R> landmark_q() const {
    return {row_of(a.landmark_q, a.landmark_q_strides, a.shape.H, head, i), a.shape.dh};
  }
  template <int R>
  __device__ WarpRow<A, R> k(int64_t j) const {
    return {row_of(a.k, a.k_strides, a.shape.H, head, j), a.shape.dh};
  }
  template <int R>
  __device__ WarpRow<A, R> v(int64_t j) const {
    return {row_of(a.v, a.v_strides, a.shape.H, head, j), a.shape.dh};
  }
  template <int R>
  __device__ WarpRow<A, R> landmark(int64_t m) const {
    return {row_of(a.landmarks, a.landmark_strides, a.shape.H, head, m), a.shape.dh};
  }
  /// The logit of a landmark.
  template <int R>
  __device__ A gate(const WarpRow<A, R>& landmark_q, int64_t m) const {
    return a.gate == LandmarkGate::none ? A(0) : landmark_q.dot(landmark<R>(m)) + bias;
  }
};

}  // namespace margay::kernels::landmark
