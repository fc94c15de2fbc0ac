#include "ops/cuda/landmark_row.cuh"

namespace margay::kernels {
namespace {

using namespace landmark;  // NOLINT: this file is the backward half of it

// Formulas: ops/cpu/landmark_attention/backward.cpp. In each group of keys that a query reads (its own block, or one
// that it retrieves), the weights are w_j = exp(scale s_j + shift) and ds_j = w_j (F_j dw_j - mean). A pass over
// queries finds shift and mean, dq and the gradients dg of the landmarks' logits; then a pass over keys makes dk and
// dv, and one over landmarks theirs, from what the first one left.

/// What the first pass leaves in the workspace: of a query delta = dy . y, dbias and dbeta; of a slot of its list
/// shift, mean and dg.
template <class T>
struct Memory {
  using A = acc_t<T>;
  A* data;
  int64_t queries, slots;

  __device__ explicit Memory(const LandmarkAttentionBwd<T>& a)
      : data(a.workspace), queries(a.shape.B * a.shape.H * a.shape.Lq), slots(a.blocks ? a.K : a.shape.M) {}
  __device__ A* of_query(int64_t query) const { return data + 3 * query; }
  __device__ A* of_slot(int64_t query, int64_t slot) const { return data + 3 * (queries + query * slots + slot); }
};

/// A query in the first pass.
template <class T, int R>
struct QueryGradient {
  using A = acc_t<T>;
  const Query<T>& query;
  WarpRow<A, R> q, dy, dq, dlandmark_q;
  A dscale = 0;

  __device__ A dweight(int64_t j) const { return query.factor(j) * dy.dot(query.template v<R>(j)); }
  /// Mean of a block's F dw under the softmax of its own scores, and the logarithm of the sum of their exponentials.
  __device__ void soften(int64_t begin, int64_t end, A& mean, A& lse) const {
    A maximum = std::numeric_limits<A>::lowest(), sum(0), total(0);
    for (int64_t j = begin; j < end; ++j) {
      const A score = query.scale * q.dot(query.template k<R>(j)), top = score > maximum ? score : maximum;
      const A keep = std::exp(maximum - top), weight = std::exp(score - top);
      maximum = top;
      sum = sum * keep + weight;
      total = total * keep + weight * dweight(j);
    }
    mean = total / sum;
    lse = maximum + std::log(sum);
  }
  /// Keys begin ... end - 1; returns the sum of ds.
  __device__ A absorb(int64_t begin, int64_t end, A shift, A mean) {
    A sum(0);
    for (int64_t j = begin; j < end; ++j) {
      const WarpRow<A, R> k = query.template k<R>(j);
      const A score = q.dot(k), ds = std::exp(query.scale * score + shift) * (dweight(j) - mean);
      dq.add(query.scale * ds, k);
      dscale += ds * score;
      sum += ds;
    }
    return sum;
  }
};

// A warp per query.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) query_gradients(LandmarkAttentionBwd<T> a) {
  using A = acc_t<T>;
  const LandmarkShape& s = a.shape;
  const Memory<T> memory(a);
  for (int64_t index = blockIdx.x * kWarps + threadIdx.x / cuda::kWarp; index < memory.queries;
       index += gridDim.x * kWarps) {
    const Query<T> query(a, index);
    const WarpRow<A, R> landmark_q = query.template landmark_q<R>();
    const WarpRow<A, R> dy(row_of(a.dy, a.dy_strides, s.H, query.head, query.i), s.dh);
    QueryGradient<T, R> own{query, query.template q<R>(), dy, {}, {}};
    const A delta = dy.dot(WarpRow<A, R>(row_of(a.y, a.y_strides, s.H, query.head, query.i), s.dh)), lse = a.lse[index];
    own.absorb(query.local, query.position + 1, -lse, delta);
    A dbias(0);
    for (int64_t slot = 0; slot < memory.slots; ++slot) {
      const int64_t m = query.block(slot);
      if (m < 0) continue;
      const A gate = query.gate(landmark_q, m) - lse;
      A shift = gate, mean = delta, dgate(0);
      if (a.gate == LandmarkGate::grouped) {
        A inner;
        own.soften(m * s.W, (m + 1) * s.W, mean, inner);
        shift = gate - inner;
        dgate = std::exp(gate) * (mean - delta);
      }
      const A sum = own.absorb(m * s.W, (m + 1) * s.W, shift, mean);
      if (a.gate == LandmarkGate::additive) dgate = sum;
      if (a.gate != LandmarkGate::none) own.dlandmark_q.add(dgate, query.template landmark<R>(m));
      dbias += dgate;
      if (threadIdx.x % cuda::kWarp > 0) continue;
      A* const left = memory.of_slot(index, slot);
      left[0] = shift, left[1] = mean, left[2] = dgate;
    }
    if (a.dlandmark_q) {
      own.dlandmark_q.store(row_of(a.dlandmark_q, a.dlandmark_q_strides, s.H, query.head, query.i), s.dh);
    } else {
      own.dq.add(A(1), own.dlandmark_q);
    }
    own.dq.store(row_of(a.dq, a.dq_strides, s.H, query.head, query.i), s.dh);
    if (threadIdx.x % cuda::kWarp > 0) continue;
    A* const left = memory.of_query(index);
    left[0] = delta, left[1] = dbias, left[2] = own.dscale;
  }
}

/// The slot in which a query retrieves block m, -1 for none; the lanes of a warp look for it together.
template <class T>
__device__ int64_t slot_of(const LandmarkAttentionBwd<T>& a, int64_t query, int64_t m) {
  if (!a.blocks) return m;
  int64_t found = -1;
  for (int64_t slot = threadIdx.x % cuda::kWarp; slot < a.K; slot += cuda::kWarp)
    if (a.blocks[query * a.K + slot] == m) found = slot;
  return cuda::warp_reduce<cuda::Largest>(found);
}

// dk and dv; a warp per key, over the queries of its block and those that retrieve it.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) key_gradients(LandmarkAttentionBwd<T> a) {
  using A = acc_t<T>;
  const LandmarkShape& s = a.shape;
  const Memory<T> memory(a);
  for (int64_t at = blockIdx.x * kWarps + threadIdx.x / cuda::kWarp; at < s.B * s.H * s.Lk; at += gridDim.x * kWarps) {
    const int64_t head = at / s.Lk, j = at % s.Lk, block = j / s.W, offset = s.Lk - s.Lq;
    const WarpRow<A, R> k(row_of(a.k, a.k_strides, s.H, head, j), s.dh),
        v(row_of(a.v, a.v_strides, s.H, head, j), s.dh);
    WarpRow<A, R> dk, dv;
    for (int64_t i = max(int64_t{0}, j - offset); i < s.Lq; ++i) {
      const int64_t index = head * s.Lq + i;
      const bool local = (offset + i) / s.W == block;
      const int64_t slot = local ? 0 : slot_of(a, index, block);
      if (slot < 0) continue;
      const Query<T> query(a, index);
      const A shift = local ? -a.lse[index] : memory.of_slot(index, slot)[0];
      const A mean = local ? memory.of_query(index)[0] : memory.of_slot(index, slot)[1];
      const WarpRow<A, R> q = query.template q<R>(), dy(row_of(a.dy, a.dy_strides, s.H, head, i), s.dh);
      const A weight = std::exp(query.scale * q.dot(k) + shift), factor = query.factor(j);
      dk.add(query.scale * weight * (factor * dy.dot(v) - mean), q);
      dv.add(weight * factor, dy);
    }
    dk.store(row_of(a.dk, a.dk_strides, s.H, head, j), s.dh);
    dv.store(row_of(a.dv, a.dv_strides, s.H, head, j), s.dh);
  }
}

// A warp per landmark.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) landmark_gradients(LandmarkAttentionBwd<T> a) {
  using A = acc_t<T>;
  const LandmarkShape& s = a.shape;
  const Memory<T> memory(a);
  for (int64_t at = blockIdx.x * kWarps + threadIdx.x / cuda::kWarp; at < s.B * s.H * s.M; at += gridDim.x * kWarps) {
    const int64_t head = at / s.M, m = at % s.M;
    WarpRow<A, R> sum;
    for (int64_t i = max(int64_t{0}, (m + 1) * s.W - (s.Lk - s.Lq)); i < s.Lq; ++i) {
      const int64_t slot = slot_of(a, head * s.Lq + i, m);
      if (slot < 0) continue;
      sum.add(memory.of_slot(head * s.Lq + i, slot)[2],
              WarpRow<A, R>(row_of(a.landmark_q, a.landmark_q_strides, s.H, head, i), s.dh));
    }
    sum.store(a.dlandmarks + at * s.dh, s.dh);
  }
}

// A block per head: sums over its queries in all batches.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) head_gradients(LandmarkAttentionBwd<T> a) {
  using A = acc_t<T>;
  const LandmarkShape& s = a.shape;
  const Memory<T> memory(a);
  A dbias(0), dbeta(0);
  for (int64_t n = threadIdx.x; n < s.B * s.Lq; n += cuda::kThreads) {
    const A* const left = memory.of_query((n / s.Lq * s.H + blockIdx.x) * s.Lq + n % s.Lq);
    dbias += left[1];
    dbeta += left[2];
  }
  dbias = cuda::block_reduce<cuda::Sum>(dbias);
  dbeta = cuda::block_reduce<cuda::Sum>(dbeta);
  if (threadIdx.x > 0) return;
  if (a.dbias) a.dbias[blockIdx.x] = T(dbias);
  if (a.dbeta) a.dbeta[blockIdx.x] = T(dbeta);
}

}  // namespace

template <class T>
void run(Cuda cuda, const LandmarkAttentionBwd<T>& a) {
  const LandmarkShape& s = a.shape;
  const int64_t threads = s.B * s.H * cuda::kWarp;
  with_warp_rows("landmark_attention", s.dh, [&]<int R>() {
    cuda::launch_elements(cuda, threads * s.Lq, query_gradients<T, R>, a);
    cuda::launch_elements(cuda, threads * s.Lk, key_gradients<T, R>, a);
    if (a.dlandmarks) cuda::launch_elements(cuda, threads * s.M, landmark_gradients<T, R>, a);
  });
  if (s.H > 0 && (a.dbias || a.dbeta))
    cuda::launch(cuda, dim3(static_cast<unsigned>(s.H)), dim3(cuda::kThreads), head_gradients<T>, a);
}

template void run(Cuda, const LandmarkAttentionBwd<float>&);
template void run(Cuda, const LandmarkAttentionBwd<double>&);
template void run(Cuda, const LandmarkAttentionBwd<bf16>&);

}  // namespace margay::kernels
