#include <fmt/format.h>

#include "engine/error.h"
#include "ops/cuda/few_queries.cuh"
#include "ops/cuda/warp_row.cuh"
#include "ops/dropout.h"
#include "ops/selected_attention.h"

namespace margay::kernels {
namespace {

// Formulas: ops/cpu/causal_attention/backward.cpp.

/// A selected query of a head, as a warp sees it.
template <class T>
struct Query {
  using A = acc_t<T>;
  const SelectedAttentionCall<T>& a;
  int64_t batch, head, position;
  A scale;

  __device__ Query(const SelectedAttentionCall<T>& a, int64_t row, int64_t head)
      : a(a),
        batch(row / a.shape.Lk),
        head(head),
        position(row % a.shape.Lk),
        scale(a.beta ? A(a.beta[head]) : A(a.scale)) {}
  __device__ int64_t keys_begin() const { return max(int64_t{0}, position - a.shape.reach); }
  /// What dropout makes of the weight of key j.
  __device__ A factor(int64_t j) const {
    if (a.dropout.rate <= 0) return A(1);
    const DropoutMask mask = DropoutMask::make(a.dropout.rng, a.dropout.stream, a.dropout.rate);
    const int64_t row = (batch * a.shape.H + head) * a.shape.Lq + position;
    return mask.keeps_element(static_cast<uint64_t>(row * a.shape.Lk + j)) ? A(1 / (1 - a.dropout.rate)) : A(0);
  }
};

template <class T>
__device__ T* row_of(T* data, const HeadStrides& strides, int64_t batch, int64_t head, int64_t row) {
  return data + batch * strides.batch + head * strides.head + row * strides.row;
}

// A selected query of a head; a row of -1 sees no key.
template <class T>
struct SelectedQueries {
  SelectedAttentionFwd<T> a;

  __device__ attention::QueryTask<T> task(int64_t unit) const {
    const int32_t row = a.rows[unit / a.shape.H];
    attention::QueryTask<T> none{.y = a.y + unit * a.shape.dh};
    if (row < 0) return none;
    const Query<T> own(a, row, unit % a.shape.H);
    return {row_of(a.q, a.q_strides, own.batch, own.head, own.position),
            attention::head_rows(a.k, a.k_strides, own.batch, own.head),
            attention::head_rows(a.v, a.v_strides, own.batch, own.head),
            own.keys_begin(),
            own.position + 1,
            own.scale,
            none.y,
            a.lse ? a.lse + unit : nullptr};
  }
  __device__ acc_t<T> factor(int64_t unit, int64_t key) const {
    return Query<T>(a, a.rows[unit / a.shape.H], unit % a.shape.H).factor(key);
  }
};

/// What the pass over queries leaves in the workspace: dq [R,H,dh], then delta = dy . y and dbeta, [R,H] each.
template <class T>
struct Memory {
  acc_t<T>*dq, *delta, *dbeta;
  __device__ explicit Memory(const SelectedAttentionBwd<T>& a)
      : dq(a.workspace), delta(dq + a.R * a.shape.H * a.shape.dh), dbeta(delta + a.R * a.shape.H) {}
};

// A warp per selected query and head.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) query_gradients(SelectedAttentionBwd<T> a) {
  using A = acc_t<T>;
  const AttentionShape& s = a.shape;
  const Memory<T> memory(a);
  for (int64_t index = cuda::WarpTeam::first(); index < a.R * s.H; index += cuda::WarpTeam::step()) {
    const int32_t row = a.rows[index / s.H];
    WarpRow<A, R> dq;
    A delta(0), dbeta(0);
    if (row >= 0) {
      const Query<T> query(a, row, index % s.H);
      const WarpRow<A, R> q(row_of(a.q, a.q_strides, query.batch, query.head, query.position), s.dh),
          dy(a.dy + index * s.dh, s.dh);
      delta = dy.dot({a.y + index * s.dh, s.dh});
      for (int64_t j = query.keys_begin(); j <= query.position; ++j) {
        const WarpRow<A, R> k(row_of(a.k, a.k_strides, query.batch, query.head, j), s.dh);
        const WarpRow<A, R> v(row_of(a.v, a.v_strides, query.batch, query.head, j), s.dh);
        const A score = q.dot(k), weight = std::exp(query.scale * score - a.lse[index]);
        const A dscore = weight * (query.factor(j) * dy.dot(v) - delta);
        dq.add(query.scale * dscore, k);
        dbeta += dscore * score;
      }
    }
    dq.store(memory.dq + index * s.dh, s.dh);
    if (cuda::WarpTeam::rank() == 0) memory.delta[index] = delta, memory.dbeta[index] = dbeta;
  }
}

// A warp per token and head: dk and dv from the selected queries that see it, and the sum of dq of those that it is.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) token_gradients(SelectedAttentionBwd<T> a) {
  using A = acc_t<T>;
  const AttentionShape& s = a.shape;
  const Memory<T> memory(a);
  for (int64_t at = cuda::WarpTeam::first(); at < s.B * s.H * s.Lk; at += cuda::WarpTeam::step()) {
    const int64_t batch = at / s.Lk / s.H, head = at / s.Lk % s.H, j = at % s.Lk;
    const WarpRow<A, R> k(row_of(a.k, a.k_strides, batch, head, j), s.dh),
        v(row_of(a.v, a.v_strides, batch, head, j), s.dh);
    WarpRow<A, R> dq, dk, dv;
    const int64_t least = batch * s.Lk + j, most = batch * s.Lk + min(s.Lk - 1, j + s.reach);  // rows that see it
    for (int64_t first = 0; first < a.R; first += cuda::kWarp) {
      const int64_t own = first + cuda::WarpTeam::rank();
      unsigned found = __ballot_sync(~0u, own < a.R && a.rows[own] >= least && a.rows[own] <= most);
      for (; found != 0; found &= found - 1) {
        const int64_t r = first + __ffs(static_cast<int>(found)) - 1, index = r * s.H + head;
        const Query<T> query(a, a.rows[r], head);
        const WarpRow<A, R> q(row_of(a.q, a.q_strides, batch, head, query.position), s.dh),
            dy(a.dy + index * s.dh, s.dh);
        const A weight = std::exp(query.scale * q.dot(k) - a.lse[index]), factor = query.factor(j);
        dk.add(query.scale * weight * (factor * dy.dot(v) - memory.delta[index]), q);
        dv.add(weight * factor, dy);
        if (query.position == j) dq.add(A(1), {memory.dq + index * s.dh, s.dh});
      }
    }
    dq.store(row_of(a.dq, a.dq_strides, batch, head, j), s.dh);
    dk.store(row_of(a.dk, a.dk_strides, batch, head, j), s.dh);
    dv.store(row_of(a.dv, a.dv_strides, batch, head, j), s.dh);
  }
}

// A block per head.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) sum_dbeta(SelectedAttentionBwd<T> a) {
  const Memory<T> memory(a);
  acc_t<T> sum(0);
  for (int64_t r = threadIdx.x; r < a.R; r += cuda::kThreads) sum += memory.dbeta[r * a.shape.H + blockIdx.x];
  sum = cuda::block_reduce<cuda::Sum>(sum);
  if (threadIdx.x == 0) a.dbeta[blockIdx.x] = T(sum);
}

}  // namespace

template <class T>
void run(Cuda cuda, const SelectedAttentionFwd<T>& a) {
  if (a.shape.dh > KeyParts::kMostHead)
    throw DeviceError(
        fmt::format("the CUDA kernels of selected_attention take heads of size {} at most", KeyParts::kMostHead));
  attention::attend<T>(cuda, SelectedQueries<T>{a}, a.key_parts(), a.shape.dh, a.workspace);
}

template <class T>
void run(Cuda cuda, const SelectedAttentionBwd<T>& a) {
  const AttentionShape& s = a.shape;
  with_warp_rows("selected_attention", s.dh, [&]<int R>() {
    cuda::launch_elements(cuda, a.R * s.H * cuda::kWarp, query_gradients<T, R>, a);
    cuda::launch_elements(cuda, s.B * s.H * s.Lk * cuda::kWarp, token_gradients<T, R>, a);
  });
  if (s.H > 0 && a.dbeta) cuda::launch(cuda, dim3(static_cast<unsigned>(s.H)), dim3(cuda::kThreads), sum_dbeta<T>, a);
}

template void run(Cuda, const SelectedAttentionFwd<float>&);
template void run(Cuda, const SelectedAttentionFwd<double>&);
template void run(Cuda, const SelectedAttentionFwd<bf16>&);
template void run(Cuda, const SelectedAttentionBwd<float>&);
template void run(Cuda, const SelectedAttentionBwd<double>&);
template void run(Cuda, const SelectedAttentionBwd<bf16>&);

}  // namespace margay::kernels
