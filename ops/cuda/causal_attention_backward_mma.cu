#include "engine/cuda/reduce.cuh"
#include "ops/cuda/attention_mma.cuh"

namespace margay::kernels::attention {
namespace {

// The gradients as in causal_attention_backward.cu, in two passes that both make the weights again. Sums over masked
// pairs hide what is not finite: see hide_non_finite().

constexpr float kLog2E = 1.44269504f;

/// The factors.
struct Heads {
  Bf16Heads q, k, v, dy;
};

/// What turns scores and their gradients into weights and theirs.
template <class T>
struct Weighting {
  float scale, kept_factor;

  __device__ Weighting(const CausalAttentionBwd<T>& a, const Place& at)
      : scale(a.beta ? float(a.beta[at.head]) : float(a.scale)), kept_factor(1 / (1 - float(a.dropout.rate))) {}
  __device__ float weight(float score, float lse) const { return exp2f((score * scale - lse) * kLog2E); }
};

template <int kDim>
struct QueryShared {
  Tile<kDim> q, dy, k, v;
};

// dq, and what each query adds to dscale: a block per tile of queries, over the tiles of keys that they see.
template <int kDim, class T>
__global__ void __launch_bounds__(kBlock, blocks_for(kDim / 2 + 64))
    query_gradient(CausalAttentionBwd<T> a, Heads heads) {
  auto& shared = cuda::dynamic_shared<QueryShared<kDim>>();
  const AttentionShape& s = a.shape;
  const Place at = place<float>(s, s.Lq, true);
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kSize, s.Lq);
  const Rows<const bf16> k = heads.k.rows(at), v = heads.v.rows(at);
  const Weighting<T> weighting(a, at);
  float lse[2], delta[2], dscale[2] = {0, 0};
  for (int r = 0; r < 2; ++r) {
    const int64_t query = at.first + Scores::row_of(2 * r), index = at.row * s.Lq + query;
    lse[r] = query < end ? a.lse[index] : 0;
    delta[r] = query < end ? a.workspace[index] : 0;
  }
  Sums<kDim> sums;
  const int64_t first_key = max(int64_t{0}, offset + at.first - s.reach), last_key = offset + end;
  start_load(shared.dy, heads.dy.rows(at), at.first, end, s.dh);
  start_load(shared.v, v, first_key, last_key, s.dh);
  cuda::end_copy_group();
  start_load(shared.q, heads.q.rows(at), at.first, end, s.dh);
  start_load(shared.k, k, first_key, last_key, s.dh);
  cuda::end_copy_group();
  for (int64_t key = first_key; key < last_key; key += kSize) {
    cuda::wait_for_copies<1>();
    __syncthreads();  // the values are there
    Scores dscores = product(shared.dy, shared.v);
    cuda::wait_for_copies<0>();
    __syncthreads();  // and read, and the keys are there
    if (key + kSize < last_key) start_load(shared.v, v, key + kSize, last_key, s.dh);
    cuda::end_copy_group();
    const Scores scores = product(shared.q, shared.k);
    const Visible visible(offset + at.first - key, s.reach);
    const bool whole = visible.all();
    const uint32_t kept =
        kept_weights(a.dropout, [&](int i, int j) { return (at.row * s.Lq + at.first + i) * s.Lk + key + j; });
    for (int n = 0; n < kSize / 8; ++n) {
      for (int e = 0; e < 4; ++e) {
        const bool sees = whole || visible.holds(Scores::row_of(e), Scores::column_of(n, e));
        const float score = scores.part[n][e], weight = weighting.weight(score, lse[e / 2]);
        const float dweight = kept >> (4 * n + e) & 1 ? dscores.part[n][e] * weighting.kept_factor : 0;
        dscores.part[n][e] = sees ? weight * (dweight - delta[e / 2]) : 0;
        dscale[e / 2] += sees ? dscores.part[n][e] * score : 0;
      }
    }
    if (!whole) __syncthreads();  // the keys are read as they are
    const bool hidden = !whole && hide_non_finite(shared.k);
    sums.add(dscores, shared.k);
    if (hidden) sums.add_non_finite(k, key, last_key, s.dh, [&](int i, int j) { return visible.holds(i, j); });
    __syncthreads();  // the keys are read
    if (key + kSize < last_key) start_load(shared.k, k, key + kSize, last_key, s.dh);
    cuda::end_copy_group();
  }
  sums.store(head_rows(a.dq, a.dq_strides, at.batch, at.head), at.first, end, s.dh,
             [&](int) { return weighting.scale; });
  for (int r = 0; r < 2; ++r) {
    const float total = reduce_row<cuda::Sum>(dscale[r]);
    const int64_t query = at.first + Scores::row_of(2 * r);
    if (a.dbeta && threadIdx.x % 4 == 0 && query < end) a.workspace[(s.B * s.H + at.row) * s.Lq + query] = total;
  }
}

template <int kDim>
struct KeyShared {
  Tile<kDim> k, v, q, dy;
  float lse[kSize], delta[kSize];
};

// dk and dv: a block per tile of keys, over the tiles of queries that see them. Its scores have a row per key, so that
// weights are in the registers where the sums over queries want them.
template <int kDim, class T>
__global__ void __launch_bounds__(kBlock, blocks_for(kDim + 64)) key_gradients(CausalAttentionBwd<T> a, Heads heads) {
  auto& shared = cuda::dynamic_shared<KeyShared<kDim>>();
  const AttentionShape& s = a.shape;
  const Place at = place<float>(s, s.Lk, false);
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kSize, s.Lk);
  const Rows<const bf16> q = heads.q.rows(at), dy = heads.dy.rows(at);
  const Weighting<T> weighting(a, at);
  Sums<kDim> dk, dv;
  const int64_t first_query = max(int64_t{0}, at.first - offset), last_query = min(s.Lq, end + s.reach - offset);
  start_load(shared.v, heads.v.rows(at), at.first, end, s.dh);
  start_load(shared.dy, dy, first_query, last_query, s.dh);
  cuda::end_copy_group();
  start_load(shared.k, heads.k.rows(at), at.first, end, s.dh);
  start_load(shared.q, q, first_query, last_query, s.dh);
  cuda::end_copy_group();
  for (int64_t query = first_query; query < last_query; query += kSize) {
    if (threadIdx.x < kSize) {
      const int64_t i = query + threadIdx.x;
      shared.lse[threadIdx.x] = i < last_query ? a.lse[at.row * s.Lq + i] : 0;
      shared.delta[threadIdx.x] = i < last_query ? a.workspace[at.row * s.Lq + i] : 0;
    }
    cuda::wait_for_copies<1>();
    __syncthreads();  // dy is there
    Scores dscores = product(shared.v, shared.dy);
    cuda::wait_for_copies<0>();
    __syncthreads();  // the queries are there
    Scores weights = product(shared.k, shared.q);
    const Visible visible(offset + query - at.first, s.reach);
    const bool whole = visible.all() && query + kSize <= last_query;
    const auto sees = [&](int j, int i) { return query + i < last_query && visible.holds(i, j); };
    const uint32_t kept =
        kept_weights(a.dropout, [&](int j, int i) { return (at.row * s.Lq + query + i) * s.Lk + at.first + j; });
    for (int n = 0; n < kSize / 8; ++n) {
      for (int e = 0; e < 4; ++e) {
        const int j = Scores::row_of(e), i = Scores::column_of(n, e);
        const bool counts = whole || sees(j, i), keeps = kept >> (4 * n + e) & 1;
        const float weight = weighting.weight(weights.part[n][e], shared.lse[i]);
        const float dweight = keeps ? dscores.part[n][e] * weighting.kept_factor : 0;
        dscores.part[n][e] = counts ? weight * (dweight - shared.delta[i]) : 0;
        weights.part[n][e] = counts && keeps ? weight : 0;
      }
    }
    bool hidden_dy = false, hidden_q = false;
    if (!whole) {
      __syncthreads();  // both are read as they are
      hidden_dy = hide_non_finite(shared.dy);
      hidden_q = hide_non_finite(shared.q);
    }
    dv.add(weights, shared.dy);
    if (hidden_dy) dv.add_non_finite(dy, query, last_query, s.dh, sees);
    __syncthreads();  // dy is read
    if (query + kSize < last_query) start_load(shared.dy, dy, query + kSize, last_query, s.dh);
    cuda::end_copy_group();
    dk.add(dscores, shared.q);
    if (hidden_q) dk.add_non_finite(q, query, last_query, s.dh, sees);
    __syncthreads();  // the queries are read
    if (query + kSize < last_query) start_load(shared.q, q, query + kSize, last_query, s.dh);
    cuda::end_copy_group();
  }
  dk.store(head_rows(a.dk, a.dk_strides, at.batch, at.head), at.first, end, s.dh, [&](int) { return weighting.scale; });
  dv.store(head_rows(a.dv, a.dv_strides, at.batch, at.head), at.first, end, s.dh,
           [&](int) { return weighting.kept_factor; });
}

}  // namespace

template <class T>
void run_on_tensor_cores(Cuda cuda, const CausalAttentionBwd<T>& a) {
  const AttentionShape& s = a.shape;
  const auto blocks = [&](int64_t length) {
    return dim3(static_cast<unsigned>(s.B * s.H * ((length + kSize - 1) / kSize)));
  };
  if (blocks(s.Lk).x == 0) return;
  const Factor<T> q(cuda, a.q, a.q_strides, s.Lq, s), k(cuda, a.k, a.k_strides, s.Lk, s),
      v(cuda, a.v, a.v_strides, s.Lk, s), dy(cuda, a.dy, a.dy_strides, s.Lq, s);
  const Heads heads{q, k, v, dy};
  with_head_size(s.dh, [&]<int kDim>(std::integral_constant<int, kDim>) {
    if (s.Lq > 0)
      cuda::launch_shared(cuda, blocks(s.Lq), dim3(kBlock), sizeof(QueryShared<kDim>), query_gradient<kDim, T>, a,
                          heads);
    cuda::launch_shared(cuda, blocks(s.Lk), dim3(kBlock), sizeof(KeyShared<kDim>), key_gradients<kDim, T>, a, heads);
  });
}

template void run_on_tensor_cores(Cuda, const CausalAttentionBwd<float>&);
template void run_on_tensor_cores(Cuda, const CausalAttentionBwd<bf16>&);

}  // namespace margay::kernels::attention
