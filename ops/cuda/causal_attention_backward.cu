#include "engine/cuda/reduce.cuh"
#include "engine/flop_counter.h"
#include "ops/cuda/attention_mma.cuh"

namespace margay::kernels {
namespace {

using namespace attention;  // NOLINT: this file is the backward half of it

// With S = scale q k^T, P = exp(S - lse), dP = dy v^T and delta = rowsum(dy y):
//   dS = P (dP - delta), dv = P^T dy, dq = scale dS k, dk = scale dS^T q, dscale = sum of dS (q k^T).
// Dropout with factors F turns P into P F in dv, and dP into F dP. P and dP are computed again in each pass: one over
// tiles of queries for dq, one over tiles of keys for dk and dv, so that every sum has one owner and a fixed order.

/// The rows of one head.
template <class T>
struct Head {
  Rows<const T> q, k, v, y, dy;
  __device__ Head(const CausalAttentionBwd<T>& a, int64_t batch, int64_t head)
      : q(head_rows(a.q, a.q_strides, batch, head)),
        k(head_rows(a.k, a.k_strides, batch, head)),
        v(head_rows(a.v, a.v_strides, batch, head)),
        y(head_rows(a.y, a.y_strides, batch, head)),
        dy(head_rows(a.dy, a.dy_strides, batch, head)) {}
};

// workspace[row of a query] = dy . y; a warp per query.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) deltas(CausalAttentionBwd<T> a) {
  using A = acc_t<T>;
  const AttentionShape& s = a.shape;
  constexpr int64_t warps = cuda::kThreads / cuda::kWarp;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / cuda::kWarp; i < s.B * s.H * s.Lq; i += gridDim.x * warps) {
    const int64_t row = i / s.Lq;
    const Head<T> head(a, row / s.H, row % s.H);
    const T *const dy = head.dy[i % s.Lq], *const y = head.y[i % s.Lq];
    A sum(0);
    for (int64_t d = threadIdx.x % cuda::kWarp; d < s.dh; d += cuda::kWarp) sum += A(dy[d]) * A(y[d]);
    sum = cuda::warp_sum(sum);
    if (threadIdx.x % cuda::kWarp == 0) a.workspace[i] = sum;
  }
}

/// A tile of queries against a tile of keys: P and dS of a thread's pairs, 0 where a query does not see a key.
template <class A>
struct Pairs {
  A weights[kRows<A>][kRows<A>], dscores[kRows<A>][kRows<A>];
  A products[kRows<A>];  // sums of dS (q k^T) over the thread's keys, of each of its queries

  template <class T>
  __device__ Pairs(Shared<A>& shared, const CausalAttentionBwd<T>& a, const Head<T>& head, const Thinning& dropout,
                   int64_t row, A scale, int64_t query, int64_t key) {
    const AttentionShape& s = a.shape;
    const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
    product(shared, head.q, query, s.Lq, head.k, key, s.Lk, s.dh, weights);
    product(shared, head.dy, query, s.Lq, head.v, key, s.Lk, s.dh, dscores);
#pragma unroll
    for (int r = 0; r < kRows<A>; ++r) {
      const int64_t i = query + y + kSide * r, position = s.Lk - s.Lq + i;
      const bool exists = i < s.Lq;
      const A shift = exists ? a.lse[row * s.Lq + i] : A(0), mean = exists ? a.workspace[row * s.Lq + i] : A(0);
      products[r] = 0;
#pragma unroll
      for (int c = 0; c < kRows<A>; ++c) {
        const int64_t j = key + x + kSide * c;
        const bool sees = exists && j <= position && j >= position - s.reach;
        const A factor = sees ? dropout.factor<A>(s, row, i, j) : A(0), score = weights[r][c];
        const A weight = sees ? std::exp(score * scale - shift) : A(0);
        dscores[r][c] = sees ? weight * (dscores[r][c] * factor - mean) : A(0);
        weights[r][c] = weight * factor;
        products[r] += sees ? dscores[r][c] * score : A(0);
      }
    }
  }
};

/// Puts values of all threads where gather() reads them.
template <class A>
__device__ void share(Shared<A>& shared, const A (&values)[kRows<A>][kRows<A>]) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  __syncthreads();  // who reads the weights before these is done
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r)
#pragma unroll
    for (int c = 0; c < kRows<A>; ++c) shared.weights[y + kSide * r][x + kSide * c] = values[r][c];
}

// dq, and what each query adds to dscale (behind the deltas): a block per tile of queries and kColumns elements.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads, 2) query_gradient(CausalAttentionBwd<T> a) {
  using A = acc_t<T>;
  __shared__ Shared<A> shared;
  const AttentionShape& s = a.shape;
  const Place at = place<A>(s, s.Lq, true);
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kTile<A>, s.Lq);
  const Head<T> head(a, at.batch, at.head);
  const A scale = a.beta ? A(a.beta[at.head]) : A(a.scale);
  const Thinning dropout(a.dropout);
  A sum[kRows<A>][kColumnsPerThread] = {}, dscale[kRows<A>] = {};
  for (int64_t key = max(int64_t{0}, offset + at.first - s.reach); key < offset + end; key += kTile<A>) {
    const Pairs<A> pairs(shared, a, head, dropout, at.row, scale, at.first, key);
    share(shared, pairs.dscores);
    const Band band{offset + at.first - key - s.reach, offset + at.first - key};
    gather<false>(shared, band, head.k, key, offset + end, at.column, s.dh, sum);
#pragma unroll
    for (int r = 0; r < kRows<A>; ++r) dscale[r] += reduce_side<cuda::Sum>(pairs.products[r]);
  }
  store(head_rows(a.dq, a.dq_strides, at.batch, at.head), at.first, end, at.column, s.dh, sum,
        [&](int) { return scale; });
  if (!a.dbeta || blockIdx.y > 0 || threadIdx.x % kSide > 0) return;
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r) {
    const int64_t query = at.first + threadIdx.x / kSide + kSide * r;
    if (query < end) a.workspace[(s.B * s.H + at.row) * s.Lq + query] = dscale[r];
  }
}

// dk and dv: a block per tile of keys and kColumns elements, over the tiles of queries that see them.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads, 2) key_gradients(CausalAttentionBwd<T> a) {
  using A = acc_t<T>;
  __shared__ Shared<A> shared;
  const AttentionShape& s = a.shape;
  const Place at = place<A>(s, s.Lk, false);
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kTile<A>, s.Lk);
  const Head<T> head(a, at.batch, at.head);
  const A scale = a.beta ? A(a.beta[at.head]) : A(a.scale);
  const Thinning dropout(a.dropout);
  A dk[kRows<A>][kColumnsPerThread] = {}, dv[kRows<A>][kColumnsPerThread] = {};
  const int64_t last = min(s.Lq, end + s.reach - offset);
  for (int64_t query = max(int64_t{0}, at.first - offset); query < last; query += kTile<A>) {
    const Pairs<A> pairs(shared, a, head, dropout, at.row, scale, query, at.first);
    const Band band{offset + query - at.first - s.reach, offset + query - at.first};
    share(shared, pairs.weights);
    gather<true>(shared, band, head.dy, query, s.Lq, at.column, s.dh, dv);
    share(shared, pairs.dscores);
    gather<true>(shared, band, head.q, query, s.Lq, at.column, s.dh, dk);
  }
  store(head_rows(a.dk, a.dk_strides, at.batch, at.head), at.first, end, at.column, s.dh, dk,
        [&](int) { return scale; });
  store(head_rows(a.dv, a.dv_strides, at.batch, at.head), at.first, end, at.column, s.dh, dv,
        [&](int) { return A(1); });
}

// A block per head: the sum over its queries in all batches.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) beta_gradient(CausalAttentionBwd<T> a) {
  const AttentionShape& s = a.shape;
  const int64_t head = blockIdx.x;
  acc_t<T> sum(0);
  for (int64_t i = threadIdx.x; i < s.B * s.Lq; i += cuda::kThreads)
    sum += a.workspace[(s.B * s.H + i / s.Lq * s.H + head) * s.Lq + i % s.Lq];
  sum = cuda::block_reduce<cuda::Sum>(sum);
  if (threadIdx.x == 0) a.dbeta[head] = T(sum);
}

}  // namespace

template <class T>
void run(Cuda cuda, const CausalAttentionBwd<T>& a) {
  const AttentionShape& s = a.shape;
  FlopCounter::add(2 * 5 * s.pairs() * s.dh);
  const auto columns = static_cast<unsigned>(std::max<int64_t>(1, (s.dh + kColumns - 1) / kColumns));
  const auto tiles = [&](int64_t length) {
    return static_cast<unsigned>(s.B * s.H * ((length + kTile<acc_t<T>> - 1) / kTile<acc_t<T>>));
  };
  const dim3 threads(cuda::kThreads);
  if (tiles(s.Lq) > 0) cuda::launch_elements(cuda, s.B * s.H * s.Lq * cuda::kWarp, deltas<T>, a);
  if (!try_tensor_cores(cuda, a)) {
    if (tiles(s.Lq) > 0) cuda::launch(cuda, dim3(tiles(s.Lq), columns), threads, query_gradient<T>, a);
    if (tiles(s.Lk) > 0) cuda::launch(cuda, dim3(tiles(s.Lk), columns), threads, key_gradients<T>, a);
  }
  if (a.dbeta && s.H > 0) cuda::launch(cuda, dim3(static_cast<unsigned>(s.H)), threads, beta_gradient<T>, a);
}

template void run(Cuda, const CausalAttentionBwd<float>&);
template void run(Cuda, const CausalAttentionBwd<double>&);
template void run(Cuda, const CausalAttentionBwd<bf16>&);

}  // namespace margay::kernels
