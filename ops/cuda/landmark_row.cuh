#pragma once
#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"
#include "ops/dropout.h"
#include "ops/landmark_attention.h"

// What the passes of landmark attention share: a warp has one row (of queries, keys or landmarks), whose elements lie
// in registers of its lanes, R each.

namespace margay::kernels::landmark {

inline constexpr int64_t kWarps = cuda::kThreads / cuda::kWarp;

template <class A, int R>
struct Row {
  A x[R] = {};

  Row() = default;
  template <class T>
  __device__ Row(const T* from, int64_t dh) {
    for (int r = 0; r < R; ++r) {
      const int64_t d = threadIdx.x % cuda::kWarp + cuda::kWarp * r;
      x[r] = d < dh ? A(from[d]) : A(0);
    }
  }
  template <class T>
  __device__ void store(T* to, int64_t dh) const {
    for (int r = 0; r < R; ++r) {
      const int64_t d = threadIdx.x % cuda::kWarp + cuda::kWarp * r;
      if (d < dh) to[d] = T(x[r]);
    }
  }
  /// In all lanes.
  __device__ A dot(const Row& other) const {
    A sum(0);
    for (int r = 0; r < R; ++r) sum += x[r] * other.x[r];
    return cuda::warp_reduce<cuda::Sum>(sum);
  }
  __device__ void scale(A factor) {
    for (int r = 0; r < R; ++r) x[r] *= factor;
  }
  __device__ void add(A factor, const Row& other) {
    for (int r = 0; r < R; ++r) x[r] += factor * other.x[r];
  }
};

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
  __device__ Row<A, R> q() const {
    return {row_of(a.q, a.q_strides, a.shape.H, head, i), a.shape.dh};
  }
  template <int R>
  __device__ Row<A, R> landmark_q() const {
    return {row_of(a.landmark_q, a.landmark_q_strides, a.shape.H, head, i), a.shape.dh};
  }
  template <int R>
  __device__ Row<A, R> k(int64_t j) const {
    return {row_of(a.k, a.k_strides, a.shape.H, head, j), a.shape.dh};
  }
  template <int R>
  __device__ Row<A, R> v(int64_t j) const {
    return {row_of(a.v, a.v_strides, a.shape.H, head, j), a.shape.dh};
  }
  template <int R>
  __device__ Row<A, R> landmark(int64_t m) const {
    return {row_of(a.landmarks, a.landmark_strides, a.shape.H, head, m), a.shape.dh};
  }
  /// The logit of a landmark.
  template <int R>
  __device__ A gate(const Row<A, R>& landmark_q, int64_t m) const {
    return a.gate == LandmarkGate::none ? A(0) : landmark_q.dot(landmark<R>(m)) + bias;
  }
};

/// Calls body.template operator()<R>() with enough registers for heads of size dh.
template <class Body>
void with_registers(int64_t dh, const Body& body) {
  if (dh <= 2 * cuda::kWarp) {
    body.template operator()<2>();
  } else if (dh <= 8 * cuda::kWarp) {
    body.template operator()<8>();
  } else if (dh <= 64 * cuda::kWarp) {
    body.template operator()<64>();
  } else {
    throw DeviceError("the CUDA kernels of landmark_attention take heads of size 2048 at most");
  }
}

}  // namespace margay::kernels::landmark
