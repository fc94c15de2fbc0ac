#include "engine/cuda/reduce.cuh"
#include "ops/cuda/attention_mma.cuh"

namespace margay::kernels::attention {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

/// Of a lane's two rows, over the keys seen so far: the maximum of the scores to the base of 2, and the lane's share of
/// the sum of 2^(score - maximum).
struct RunningSoftmax {
  float maximum[2] = {std::numeric_limits<float>::lowest(), std::numeric_limits<float>::lowest()}, sum[2] = {0, 0};

  /// Scores become weights 2^(score - maximum), which is 0 for -infinity. rescale[r]: what earlier sums of a row have
  /// to be multiplied with.
  __device__ void absorb(Scores& scores, float (&rescale)[2]) {
    for (int r = 0; r < 2; ++r) {
      float top = maximum[r];
      for (auto& part : scores.part)
        for (int e = 2 * r; e < 2 * r + 2; ++e) top = Maximum::combine(top, part[e]);
      top = reduce_row<Maximum>(top);
      rescale[r] = exp2f(maximum[r] - top);
      maximum[r] = top;
      sum[r] *= rescale[r];
      for (auto& part : scores.part)
        for (int e = 2 * r; e < 2 * r + 2; ++e) sum[r] += part[e] = exp2f(part[e] - top);
    }
  }
};

template <int kDim>
struct ForwardShared {
  Tile<kDim> q, k, v;
};

// A block per tile of queries of a head (Dao 2023, arXiv:2307.08691). While it works on keys, it copies their values;
// while it works on the values, the next keys.
template <int kDim, class T>
__global__ void __launch_bounds__(kBlock, blocks_for(kDim / 2 + 32))
    forward(CausalAttentionFwd<T> a, Bf16Heads q_heads, Bf16Heads k_heads, Bf16Heads v_heads) {
  auto& shared = cuda::dynamic_shared<ForwardShared<kDim>>();
  const AttentionShape& s = a.shape;
  const Place at = place<float>(s, s.Lq, true);  // the last tiles see the most keys, so they come first
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kSize, s.Lq);
  const Rows<const bf16> k = k_heads.rows(at), v = v_heads.rows(at);
  const float scale = (a.beta ? float(a.beta[at.head]) : float(a.scale)) * kLog2E;
  RunningSoftmax softmax;
  Sums<kDim> sums;
  const int64_t first_key = max(int64_t{0}, offset + at.first - s.reach), last_key = offset + end;
  start_load(shared.q, q_heads.rows(at), at.first, end, s.dh);
  start_load(shared.k, k, first_key, last_key, s.dh);
  cuda::end_copy_group();
  start_load(shared.v, v, first_key, last_key, s.dh);
  cuda::end_copy_group();
  for (int64_t key = first_key; key < last_key; key += kSize) {
    cuda::wait_for_copies<1>();
    __syncthreads();  // the keys are there
    Scores scores = product(shared.q, shared.k);
    __syncthreads();  // and read
    if (key + kSize < last_key) start_load(shared.k, k, key + kSize, last_key, s.dh);
    cuda::end_copy_group();
    const Visible visible(offset + at.first - key, s.reach);
    const bool whole = visible.all();
    for (int n = 0; n < kSize / 8; ++n)
      for (int e = 0; e < 4; ++e)
        scores.part[n][e] =
            whole || visible.holds(Scores::row_of(e), Scores::column_of(n, e)) ? scores.part[n][e] * scale : -INFINITY;
    float rescale[2];
    softmax.absorb(scores, rescale);
    for (auto& part : sums.part)
      for (int e = 0; e < 4; ++e) part[e] *= rescale[e / 2];
    const uint32_t kept =
        kept_weights(a.dropout, [&](int i, int j) { return (at.row * s.Lq + at.first + i) * s.Lk + key + j; });
    for (int n = 0; n < kSize / 8; ++n)
      for (int e = 0; e < 4; ++e)
        if (!(kept >> (4 * n + e) & 1)) scores.part[n][e] = 0;
    cuda::wait_for_copies<1>();
    __syncthreads();  // the values are there
    const bool hidden = !whole && hide_non_finite(shared.v);
    sums.add(scores, shared.v);
    if (hidden) sums.add_non_finite(v, key, last_key, s.dh, [&](int i, int j) { return visible.holds(i, j); });
    __syncthreads();  // and read
    if (key + kSize < last_key) start_load(shared.v, v, key + kSize, last_key, s.dh);
    cuda::end_copy_group();
  }
  const float kept_share = 1 - float(a.dropout.rate);
  float total[2];
  for (int r = 0; r < 2; ++r) total[r] = reduce_row<cuda::Sum>(softmax.sum[r]);
  sums.store(head_rows(a.y, a.y_strides, at.batch, at.head), at.first, end, s.dh,
             [&](int r) { return 1 / (total[r] * kept_share); });
  if (!a.lse || threadIdx.x % 4 > 0) return;
  for (int r = 0; r < 2; ++r) {
    const int64_t query = at.first + Scores::row_of(2 * r);
    if (query < end) a.lse[at.row * s.Lq + query] = (softmax.maximum[r] + log2f(total[r])) * kLn2;
  }
}

}  // namespace

template <class T>
void run_on_tensor_cores(Cuda cuda, const CausalAttentionFwd<T>& a) {
  const AttentionShape& s = a.shape;
  const int64_t blocks = s.B * s.H * ((s.Lq + kSize - 1) / kSize);
  if (blocks == 0) return;
  const Factor<T> q(cuda, a.q, a.q_strides, s.Lq, s), k(cuda, a.k, a.k_strides, s.Lk, s),
      v(cuda, a.v, a.v_strides, s.Lk, s);
  with_head_size(s.dh, [&]<int kDim>(std::integral_constant<int, kDim>) {
    cuda::launch_shared(cuda, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), sizeof(ForwardShared<kDim>),
                        forward<kDim, T>, a, Bf16Heads(q), Bf16Heads(k), Bf16Heads(v));
  });
}

template void run_on_tensor_cores(Cuda, const CausalAttentionFwd<float>&);
template void run_on_tensor_cores(Cuda, const CausalAttentionFwd<bf16>&);

}  // namespace margay::kernels::attention
