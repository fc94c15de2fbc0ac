#include "ops/linear_attention.h"

#include "ops/cuda/recurrence.cuh"

namespace margay::kernels {
namespace {

// Features of all tokens go to memory; on them runs the recurrence without decay. A normaliser is one more column of
// values, all 1. Formulas: ops/cpu/linear_attention.

template <class T>
__device__ T* row_of(T* data, const HeadStrides& strides, int64_t H, int64_t head, int64_t t) {
  return data + head / H * strides.batch + head % H * strides.head + t * strides.row;
}

/// Where the feature x_i x_j of taylor2 stands, for i <= j.
__device__ int64_t pair_index(int64_t f, int64_t i, int64_t j) { return 1 + f + i * f - i * (i - 1) / 2 + j - i; }

/// Feature n of a row x of f numbers; queries of taylor2 are divided by sqrt(f), and their squares count half.
template <class A, class T>
__device__ A feature(FeatureMap map, bool query, const T* x, int64_t f, int64_t n) {
  if (map == FeatureMap::identity) return A(x[n]);
  if (map == FeatureMap::elu1) return A(x[n]) > A(0) ? A(x[n]) + A(1) : std::exp(A(x[n]));
  if (map == FeatureMap::softmax) {
    A top(x[0]), sum(0);
    for (int64_t i = 1; i < f; ++i) top = A(x[i]) > top ? A(x[i]) : top;
    for (int64_t i = 0; i < f; ++i) sum += std::exp(A(x[i]) - top);
    return std::exp(A(x[n]) - top) / sum;
  }
  const A scale = query ? A(1 / std::sqrt(static_cast<double>(f))) : A(1);
  if (n == 0) return A(1);
  if (n <= f) return scale * A(x[n - 1]);
  int64_t i = 0;
  while (i + 1 < f && pair_index(f, i + 1, i + 1) <= n) ++i;
  const int64_t j = n - pair_index(f, i, i) + i;
  return (i == j && query ? A(0.5) : A(1)) * scale * A(x[i]) * (scale * A(x[j]));
}

/// The gradient of element d of a row from those of its features.
template <class A, class T>
__device__ A pull_back(FeatureMap map, bool query, const T* x, const A* features, const A* gradient, int64_t f,
                       int64_t d) {
  if (map == FeatureMap::identity) return gradient[d];
  if (map == FeatureMap::elu1) return (features[d] < A(1) ? features[d] : A(1)) * gradient[d];
  if (map == FeatureMap::softmax) {
    A mean(0);
    for (int64_t i = 0; i < f; ++i) mean += features[i] * gradient[i];
    return features[d] * (gradient[d] - mean);
  }
  const A scale = query ? A(1 / std::sqrt(static_cast<double>(f))) : A(1);
  A sum = gradient[1 + d];
  for (int64_t i = 0; i < f; ++i) {
    const A factor = i == d && !query ? A(2) : A(1);
    sum += factor * scale * A(x[i]) * gradient[pair_index(f, min(i, d), max(i, d))];
  }
  return scale * sum;
}

/// to[head, t, :] = features of the rows; a thread per feature.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads)
    map_rows(LinearAttentionShape s, bool query, const T* rows, HeadStrides strides, int64_t F, acc_t<T>* to) {
  for (int64_t at = cuda::first_index(); at < s.B * s.H * s.T * F; at += cuda::index_step()) {
    const int64_t t = at / F % s.T, head = at / F / s.T;
    to[at] = feature<acc_t<T>>(s.map, query, row_of(rows, strides, s.H, head, t), s.f, at % F);
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads)
    pull_back_rows(LinearAttentionShape s, bool query, const T* rows, HeadStrides strides, int64_t F,
                   const acc_t<T>* features, const acc_t<T>* gradients, T* to, HeadStrides to_strides) {
  for (int64_t at = cuda::first_index(); at < s.B * s.H * s.T * s.f; at += cuda::index_step()) {
    const int64_t d = at % s.f, token = at / s.f, t = token % s.T, head = token / s.T;
    row_of(to, to_strides, s.H, head, t)[d] = T(pull_back(s.map, query, row_of(rows, strides, s.H, head, t),
                                                          features + token * F, gradients + token * F, s.f, d));
  }
}

/// What both passes read (ops/cuda/recurrence.cuh): f counts features, dv the columns of states.
template <class T>
struct Inputs {
  using A = acc_t<T>;
  LinearAttentionShape shape;
  const T* values;
  HeadStrides v_strides;
  const A* initial_state;
  int64_t heads, tokens, f, dv;
  RecurrenceChunks chunks;
  A* chunk_decays = nullptr;
  A *queries, *keys, *columns;  // [heads,T,F] twice, [heads,T,dv]

  template <class Args>
  explicit Inputs(const Args& a)
      : shape(a.shape),
        values(a.v),
        v_strides(a.v_strides),
        initial_state(a.initial),
        heads(a.shape.heads()),
        tokens(a.shape.T),
        f(a.shape.features()),
        dv(a.shape.state_columns()),
        chunks(a.shape.gpu_chunks()),
        queries(a.workspace),
        keys(queries + heads * tokens * f),
        columns(keys + heads * tokens * f) {}
  HOST_DEVICE bool corrects() const { return false; }
  HOST_DEVICE bool forgets() const { return false; }
  HOST_DEVICE bool forgets_features() const { return false; }
  __device__ A beta(int64_t, int64_t) const { return A(1); }
  __device__ A beta_dw(int64_t, int64_t, int64_t) const { return A(0); }
  __device__ A decay(int64_t, int64_t, int64_t) const { return A(1); }
  __device__ A q(int64_t head, int64_t t, int64_t i) const { return queries[(head * tokens + t) * f + i]; }
  __device__ A k(int64_t head, int64_t t, int64_t i) const { return keys[(head * tokens + t) * f + i]; }
  __device__ A v(int64_t head, int64_t t, int64_t j) const {
    return j < shape.dv ? A(row_of(values, v_strides, shape.H, head, t)[j]) : A(1);
  }
  __device__ A w(int64_t head, int64_t t, int64_t j) const { return v(head, t, j); }
  __device__ A initial(int64_t head, int64_t i, int64_t j) const {
    return initial_state ? initial_state[(head * f + i) * dv + j] : A(0);
  }
};

template <class T>
struct Forward : Inputs<T> {
  using A = acc_t<T>;
  A *states, *final;
  explicit Forward(const LinearAttentionFwd<T>& a) : Inputs<T>(a), states(a.states), final(a.final) {}
  __device__ void put_y(int64_t head, int64_t t, int64_t j, A y, A) const {
    this->columns[(head * this->tokens + t) * this->dv + j] = y;
  }
  __device__ void put_final(int64_t head, int64_t i, int64_t j, A value) const {
    if (final) final[(head * this->f + i) * this->dv + j] = value;
  }
};

/// `columns` are the cotangents of y before it was divided, and of the normaliser.
template <class T>
struct Backward : Inputs<T> {
  using A = acc_t<T>;
  LinearAttentionBwd<T> a;
  const A* states;
  A *gradients, *dqueries, *dkeys;

  explicit Backward(const LinearAttentionBwd<T>& a)
      : Inputs<T>(a),
        a(a),
        states(a.states),
        gradients(a.dstates),
        dqueries(this->columns + this->heads * this->tokens * this->dv),
        dkeys(dqueries + this->heads * this->tokens * this->f) {}
  __device__ int64_t feature_at(int64_t head, int64_t t, int64_t i) const {
    return (head * this->tokens + t) * this->f + i;
  }
  __device__ A dy(int64_t head, int64_t t, int64_t j) const {
    return this->columns[(head * this->tokens + t) * this->dv + j];
  }
  __device__ A dfinal(int64_t head, int64_t i, int64_t j) const {
    return a.dfinal ? a.dfinal[(head * this->f + i) * this->dv + j] : A(0);
  }
  __device__ void put_dinitial(int64_t head, int64_t i, int64_t j, A value) const {
    if (a.dinitial) a.dinitial[(head * this->f + i) * this->dv + j] = value;
  }
  __device__ void put_dw(int64_t head, int64_t t, int64_t j, A dw) const {
    if (j < this->shape.dv) row_of(a.dv, a.dv_strides, this->shape.H, head, t)[j] = T(dw);
  }
  __device__ void put_dq(int64_t head, int64_t t, int64_t i, A dq, A) const { dqueries[feature_at(head, t, i)] = dq; }
  __device__ void put_dk(int64_t head, int64_t t, int64_t i, A dk) const { dkeys[feature_at(head, t, i)] = dk; }
  __device__ void put_end(int64_t, int64_t, A) const {}
};

// y = columns / (normaliser + eps); a thread per element.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) finish(LinearAttentionFwd<T> a, const acc_t<T>* columns) {
  using A = acc_t<T>;
  const LinearAttentionShape& s = a.shape;
  const int64_t width = s.dv + (s.normalise ? 1 : 0);
  for (int64_t at = cuda::first_index(); at < s.B * s.H * s.T * width; at += cuda::index_step()) {
    const int64_t j = at % width, token = at / width;
    const A inverse = s.normalise ? A(1) / (columns[token * width + s.dv] + A(a.eps)) : A(1);
    if (j < s.dv) {
      row_of(a.y, a.y_strides, s.H, token / s.T, token % s.T)[j] = T(columns[at] * inverse);
    } else {
      a.inverse[token] = inverse;
    }
  }
}

// columns = c (dy, -dy . y) with c = 1 / (normaliser + eps); a warp per token of a head.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) weigh_cotangents(LinearAttentionBwd<T> a, acc_t<T>* columns) {
  using A = acc_t<T>;
  const LinearAttentionShape& s = a.shape;
  const int64_t width = s.dv + (s.normalise ? 1 : 0), lane = threadIdx.x % cuda::kWarp;
  for (int64_t token = cuda::first_index() / cuda::kWarp; token < s.B * s.H * s.T;
       token += cuda::index_step() / cuda::kWarp) {
    const T* const dy = row_of(a.dy, a.dy_strides, s.H, token / s.T, token % s.T);
    const T* const y = row_of(a.y, a.y_strides, s.H, token / s.T, token % s.T);
    const A inverse = s.normalise ? a.inverse[token] : A(1);
    A delta(0);
    for (int64_t j = lane; j < s.dv; j += cuda::kWarp) {
      delta += A(dy[j]) * A(y[j]);
      columns[token * width + j] = inverse * A(dy[j]);
    }
    delta = cuda::warp_sum(delta);
    if (s.normalise && lane == 0) columns[token * width + s.dv] = -inverse * delta;
  }
}

template <class T, class Problem, class Args>
void map_both(Cuda cuda, const Problem& p, const Args& a) {
  const int64_t count = p.heads * p.tokens * p.f;
  cuda::launch_elements(cuda, count, map_rows<T>, p.shape, true, a.q, a.q_strides, p.f, p.queries);
  cuda::launch_elements(cuda, count, map_rows<T>, p.shape, false, a.k, a.k_strides, p.f, p.keys);
}

}  // namespace

template <class T>
void run(Cuda cuda, const LinearAttentionFwd<T>& a) {
  const Forward<T> p(a);
  map_both<T>(cuda, p, a);
  recurrence::advance<acc_t<T>>(cuda, p);
  cuda::launch_elements(cuda, p.heads * p.tokens * p.dv, finish<T>, a, p.columns);
}

template <class T>
void run(Cuda cuda, const LinearAttentionBwd<T>& a) {
  const Backward<T> p(a);
  const int64_t tokens = p.heads * p.tokens;
  map_both<T>(cuda, p, a);
  cuda::launch_elements(cuda, tokens * cuda::kWarp, weigh_cotangents<T>, a, p.columns);
  recurrence::retreat<acc_t<T>>(cuda, p);
  cuda::launch_elements(cuda, tokens * a.shape.f, pull_back_rows<T>, a.shape, true, a.q, a.q_strides, p.f, p.queries,
                        p.dqueries, a.dq, a.dq_strides);
  cuda::launch_elements(cuda, tokens * a.shape.f, pull_back_rows<T>, a.shape, false, a.k, a.k_strides, p.f, p.keys,
                        p.dkeys, a.dk, a.dk_strides);
}

template void run(Cuda, const LinearAttentionFwd<float>&);
template void run(Cuda, const LinearAttentionFwd<double>&);
template void run(Cuda, const LinearAttentionFwd<bf16>&);
template void run(Cuda, const LinearAttentionBwd<float>&);
template void run(Cuda, const LinearAttentionBwd<double>&);
template void run(Cuda, const LinearAttentionBwd<bf16>&);

}  // namespace margay::kernels
