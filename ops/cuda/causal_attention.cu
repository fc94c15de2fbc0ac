#include "engine/cuda/reduce.cuh"
#include "engine/flop_counter.h"
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/few_queries.cuh"

namespace margay::kernels {
namespace {

using namespace attention;  // NOLINT: this file is the forward half of it

/// Maximum and sum of exp(score - maximum) of a thread's queries, over the keys seen so far.
template <class A>
struct RunningSoftmax {
  static constexpr A kLowest = std::numeric_limits<A>::lowest();
  A maximum[kRows<A>], sum[kRows<A>];

  __device__ RunningSoftmax() {
#pragma unroll
    for (int r = 0; r < kRows<A>; ++r) maximum[r] = kLowest, sum[r] = 0;
  }
  /// Scores become weights exp(score - maximum), 0 where a query does not see a key. Returns what earlier sums have to
  /// be multiplied with.
  __device__ A absorb(int r, const bool (&sees)[kRows<A>], A (&scores)[kRows<A>]) {
    A top = maximum[r], total(0);
#pragma unroll
    for (int c = 0; c < kRows<A>; ++c)
      if (sees[c]) top = scores[c] > top ? scores[c] : top;
    top = reduce_side<Maximum>(top);
#pragma unroll
    for (int c = 0; c < kRows<A>; ++c) {
      scores[c] = sees[c] ? std::exp(scores[c] - top) : A(0);
      total += scores[c];
    }
    const A rescale = std::exp(maximum[r] - top);
    maximum[r] = top;
    sum[r] = sum[r] * rescale + reduce_side<cuda::Sum>(total);
    return rescale;
  }
};

// A block per tile of queries of a head and kColumns elements of its result (wider heads compute scores several times).
// It walks the tiles of keys that its queries see (Dao et al. 2022, algorithm 1).
template <class T>
__global__ void __launch_bounds__(cuda::kThreads, 2) forward(CausalAttentionFwd<T> a) {
  using A = acc_t<T>;
  __shared__ Shared<A> shared;
  const AttentionShape& s = a.shape;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const Place at = place<A>(s, s.Lq, true);  // the last tiles see the most keys, so they come first
  const int64_t offset = s.Lk - s.Lq, end = min(at.first + kTile<A>, s.Lq);
  const Rows<const T> q = head_rows(a.q, a.q_strides, at.batch, at.head),
                      k = head_rows(a.k, a.k_strides, at.batch, at.head),
                      v = head_rows(a.v, a.v_strides, at.batch, at.head);
  const A scale = a.beta ? A(a.beta[at.head]) : A(a.scale);
  const Thinning dropout(a.dropout);
  RunningSoftmax<A> softmax;
  A sum[kRows<A>][kColumnsPerThread] = {};
  for (int64_t key = max(int64_t{0}, offset + at.first - s.reach); key < offset + end; key += kTile<A>) {
    A scores[kRows<A>][kRows<A>];
    product(shared, q, at.first, end, k, key, offset + end, s.dh, scores);
    const Band band{offset + at.first - key - s.reach, offset + at.first - key};
#pragma unroll
    for (int r = 0; r < kRows<A>; ++r) {
      const int i = y + kSide * r;
      bool sees[kRows<A>];
#pragma unroll
      for (int c = 0; c < kRows<A>; ++c) {
        sees[c] = band.holds(i, x + kSide * c) && key + x + kSide * c < offset + end;
        scores[r][c] *= scale;
      }
      const A rescale = softmax.absorb(r, sees, scores[r]);
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) sum[r][c] *= rescale;
#pragma unroll
      for (int c = 0; c < kRows<A>; ++c)
        shared.weights[i][x + kSide * c] =
            sees[c] ? scores[r][c] * dropout.factor<A>(s, at.row, at.first + i, key + x + kSide * c) : A(0);
    }
    gather<false>(shared, band, v, key, offset + end, at.column, s.dh, sum);
  }
  store(head_rows(a.y, a.y_strides, at.batch, at.head), at.first, end, at.column, s.dh, sum,
        [&](int r) { return 1 / softmax.sum[r]; });
  if (!a.lse || blockIdx.y > 0 || x > 0) return;
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r)
    if (at.first + y + kSide * r < end)
      a.lse[at.row * s.Lq + at.first + y + kSide * r] = softmax.maximum[r] + std::log(softmax.sum[r]);
}

// Queries one by one.
template <class T>
struct SingleQueries {
  CausalAttentionFwd<T> a;

  __device__ QueryTask<T> task(int64_t unit) const {
    const AttentionShape& s = a.shape;
    const int64_t row = unit / s.Lq, i = unit % s.Lq, batch = row / s.H, head = row % s.H, position = s.Lk - s.Lq + i;
    return {head_rows(a.q, a.q_strides, batch, head)[i],
            head_rows(a.k, a.k_strides, batch, head),
            head_rows(a.v, a.v_strides, batch, head),
            max(int64_t{0}, position - s.reach),
            position + 1,
            acc_t<T>(a.beta ? acc_t<T>(a.beta[head]) : acc_t<T>(a.scale)),
            head_rows(a.y, a.y_strides, batch, head)[i],
            a.lse ? a.lse + unit : nullptr};
  }
  __device__ acc_t<T> factor(int64_t unit, int64_t key) const {
    return Thinning(a.dropout).template factor<acc_t<T>>(a.shape, unit / a.shape.Lq, unit % a.shape.Lq, key);
  }
};

}  // namespace

template <class T>
void run(Cuda cuda, const CausalAttentionFwd<T>& a) {
  const AttentionShape& s = a.shape;
  FlopCounter::add(2 * 2 * s.pairs() * s.dh);
  if (s.Lq <= KeyParts::kMostQueries && s.dh <= KeyParts::kMostHead)
    return attend<T>(cuda, SingleQueries<T>{a}, a.key_parts(), s.dh, a.workspace);
  if (try_tensor_cores(cuda, a)) return;
  const int64_t tiles = (s.Lq + kTile<acc_t<T>> - 1) / kTile<acc_t<T>>, blocks = s.B * s.H * tiles;
  const int64_t columns = std::max<int64_t>(1, (s.dh + kColumns - 1) / kColumns);
  if (blocks == 0) return;
  cuda::launch(cuda, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)), dim3(cuda::kThreads),
               forward<T>, a);
}

template void run(Cuda, const CausalAttentionFwd<float>&);
template void run(Cuda, const CausalAttentionFwd<double>&);
template void run(Cuda, const CausalAttentionFwd<bf16>&);

}  // namespace margay::kernels
