#include "ops/gated_delta_rule.h"

#include "ops/cuda/recurrence.cuh"

namespace margay::kernels {
namespace {

template <class T>
__device__ T* row_of(T* data, const HeadStrides& strides, int64_t H, int64_t head, int64_t t) {
  return data + head / H * strides.batch + head % H * strides.head + t * strides.row;
}

/// What both passes read (ops/cuda/recurrence.cuh).
template <class T>
struct Inputs {
  using A = acc_t<T>;
  DeltaRuleInputs<T> in;
  int64_t heads, tokens, f, dv;
  RecurrenceChunks chunks;
  A* chunk_decays;
  A* residuals = nullptr;  // [heads,T,dv], or null

  Inputs(const DeltaRuleInputs<T>& in, A* chunk_decays)
      : in(in),
        heads(in.shape.heads()),
        tokens(in.shape.T),
        f(in.shape.f),
        dv(in.shape.dv),
        chunks(in.shape.gpu_chunks(in.beta != nullptr)),
        chunk_decays(chunk_decays) {}
  __device__ A element(const T* data, const HeadStrides& strides, int64_t head, int64_t t, int64_t i) const {
    return A(row_of(data, strides, in.shape.H, head, t)[i]);
  }
  HOST_DEVICE bool corrects() const { return in.beta != nullptr; }
  HOST_DEVICE bool forgets() const { return in.shape.decay != Decay::none; }
  HOST_DEVICE bool forgets_features() const { return in.shape.decay == Decay::feature; }
  __device__ A q(int64_t head, int64_t t, int64_t i) const { return element(in.q, in.q_strides, head, t, i); }
  __device__ A k(int64_t head, int64_t t, int64_t i) const { return element(in.k, in.k_strides, head, t, i); }
  __device__ A v(int64_t head, int64_t t, int64_t j) const { return element(in.v, in.v_strides, head, t, j); }
  __device__ A beta(int64_t head, int64_t t) const { return element(in.beta, in.beta_strides, head, t, 0); }
  __device__ A decay(int64_t head, int64_t t, int64_t i) const {
    return std::exp(element(in.log_decay, in.decay_strides, head, t, forgets_features() ? i : 0));
  }
  __device__ A initial(int64_t head, int64_t i, int64_t j) const {
    return in.initial ? in.initial[(head * f + i) * dv + j] : A(0);
  }
};

template <class T>
struct Forward : Inputs<T> {
  using A = acc_t<T>;
  T* y = nullptr;
  HeadStrides y_strides{};
  A *states = nullptr, *final = nullptr;

  explicit Forward(const GatedDeltaRuleFwd<T>& a)
      : Inputs<T>(a, a.workspace), y(a.y), y_strides(a.y_strides), states(a.states), final(a.final) {}
  /// For the residuals alone.
  Forward(const DeltaRuleInputs<T>& in, A* residuals) : Inputs<T>(in, nullptr) { this->residuals = residuals; }
  __device__ void put_y(int64_t head, int64_t t, int64_t j, A value, A residual) const {
    if (y) row_of(y, y_strides, this->in.shape.H, head, t)[j] = T(value);
    if (this->residuals) this->residuals[(head * this->tokens + t) * this->dv + j] = residual;
  }
  __device__ void put_final(int64_t head, int64_t i, int64_t j, A value) const {
    if (final) final[(head * this->f + i) * this->dv + j] = value;
  }
};

template <class T>
struct Backward : Inputs<T> {
  using A = acc_t<T>;
  using Inputs<T>::f, Inputs<T>::dv, Inputs<T>::tokens;
  GatedDeltaRuleBwd<T> a;
  const A* states;
  A *gradients, *gradients_q, *read, *written, *dw, *ddecay, *end;  // of the workspace

  explicit Backward(const GatedDeltaRuleBwd<T>& a) : Inputs<T>(a, a.workspace), a(a), states(a.states) {
    const int64_t all = this->heads * tokens;
    const bool corrects = this->corrects();
    gradients = a.workspace + a.shape.gpu_decays_size(corrects);
    gradients_q = gradients + a.shape.states_size(corrects, DeviceType::cuda);
    read = gradients_q + all * f;
    written = read + all * f;
    this->residuals = written + all * f;
    dw = this->residuals + all * dv;
    ddecay = dw + all * dv;
    end = ddecay + all;
  }
  __device__ A dy(int64_t head, int64_t t, int64_t j) const { return this->element(a.dy, a.dy_strides, head, t, j); }
  __device__ A w(int64_t head, int64_t t, int64_t j) const {
    return this->corrects() ? this->beta(head, t) * this->residuals[(head * tokens + t) * dv + j] : this->v(head, t, j);
  }
  __device__ A beta_dw(int64_t head, int64_t t, int64_t j) const {
    return this->beta(head, t) * dw[(head * tokens + t) * dv + j];
  }
  __device__ A dfinal(int64_t head, int64_t i, int64_t j) const {
    return a.dfinal ? a.dfinal[(head * f + i) * dv + j] : A(0);
  }
  __device__ void put_dinitial(int64_t head, int64_t i, int64_t j, A value) const {
    if (a.dinitial) a.dinitial[(head * f + i) * dv + j] = value;
  }
  __device__ void put_dw(int64_t head, int64_t t, int64_t j, A value) const {
    dw[(head * tokens + t) * dv + j] = value;
    row_of(a.dv, a.dv_strides, a.shape.H, head, t)[j] = T(this->corrects() ? this->beta(head, t) * value : value);
  }
  __device__ void put_dq(int64_t head, int64_t t, int64_t i, A dq, A dk) const {
    gradients_q[(head * tokens + t) * f + i] = dq;
    read[(head * tokens + t) * f + i] = dk;
  }
  __device__ void put_dk(int64_t head, int64_t t, int64_t i, A dk) const { written[(head * tokens + t) * f + i] = dk; }
  __device__ void put_end(int64_t head, int64_t i, A value) const { end[head * f + i] = value; }
  /// What a token adds to the gradients of the log decays up to it.
  __device__ A decay_term(int64_t head, int64_t t, int64_t i) const {
    const int64_t at = (head * tokens + t) * f + i;
    return this->q(head, t, i) * gradients_q[at] + this->k(head, t, i) * (read[at] - written[at]);
  }
};

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) write_rows(Backward<T> p) {
  for (int64_t at = cuda::first_index(); at < p.heads * p.tokens * p.f; at += cuda::index_step()) {
    const int64_t i = at % p.f, t = at / p.f % p.tokens, head = at / p.f / p.tokens, H = p.a.shape.H;
    row_of(p.a.dq, p.a.dq_strides, H, head, t)[i] = T(p.gradients_q[at]);
    row_of(p.a.dk, p.a.dk_strides, H, head, t)[i] = T(p.read[at] + p.written[at]);
  }
}

// A warp per token of a head: dbeta = sum of dw (v - P^T k), and what it adds to the gradient of one decay for a head.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) token_sums(Backward<T> p) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % cuda::kWarp;
  for (int64_t at = cuda::first_index() / cuda::kWarp; at < p.heads * p.tokens;
       at += cuda::index_step() / cuda::kWarp) {
    const int64_t t = at % p.tokens, head = at / p.tokens;
    A beta(0), decay(0);
    if (p.a.dbeta)
      for (int64_t j = lane; j < p.dv; j += cuda::kWarp) beta += p.dw[at * p.dv + j] * p.residuals[at * p.dv + j];
    for (int64_t i = lane; i < p.f; i += cuda::kWarp) decay += p.decay_term(head, t, i);
    beta = cuda::warp_sum(beta);
    decay = cuda::warp_sum(decay);
    if (lane > 0) continue;
    if (p.a.dbeta) p.a.dbeta[at] = T(beta);
    p.ddecay[at] = decay;
  }
}

// A block per 32 neighbouring features of a head: its warps sum stretches of the tokens, then each continues the sums
// of those after its own.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) feature_decays(Backward<T> p) {
  using A = acc_t<T>;
  constexpr int warps = cuda::kThreads / cuda::kWarp;
  __shared__ double sums[warps][cuda::kWarp];
  const int64_t blocks = (p.f + cuda::kWarp - 1) / cuda::kWarp, head = blockIdx.x / blocks;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp, warp = static_cast<int>(threadIdx.x) / cuda::kWarp;
  const int64_t i = blockIdx.x % blocks * cuda::kWarp + lane, stretch = (p.tokens + warps - 1) / warps;
  const int64_t begin = min(warp * stretch, p.tokens), end = min(begin + stretch, p.tokens);
  double sum = 0;
  for (int64_t t = begin; i < p.f && t < end; ++t) sum += static_cast<double>(p.decay_term(head, t, i));
  sums[warp][lane] = sum;
  __syncthreads();
  if (i >= p.f) return;
  sum = static_cast<double>(p.end[head * p.f + i]);
  for (int later = warps - 1; later > warp; --later) sum += sums[later][lane];
  for (int64_t t = end - 1; t >= begin; --t) {
    sum += static_cast<double>(p.decay_term(head, t, i));
    p.a.dlog_decay[(head * p.tokens + t) * p.f + i] = T(static_cast<A>(sum));
  }
}

// A thread per element of ddecay.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) head_decays(Backward<T> p) {
  for (int64_t at = cuda::first_index(); at < p.heads * p.tokens; at += cuda::index_step())
    p.a.dlog_decay[at] = T(p.ddecay[at]);
}

}  // namespace

template <class T>
void run(Cuda cuda, const GatedDeltaRuleFwd<T>& a) {
  recurrence::advance<acc_t<T>>(cuda, Forward<T>(a));
}

template <class T>
void run(Cuda cuda, const GatedDeltaRuleBwd<T>& a) {
  using A = acc_t<T>;
  const Backward<T> p(a);
  if (a.beta) recurrence::advance<A>(cuda, Forward<T>(a, p.residuals));
  recurrence::retreat<A>(cuda, p);
  cuda::launch_elements(cuda, p.heads * p.tokens * p.f, write_rows<T>, p);
  cuda::launch_elements(cuda, p.heads * p.tokens * cuda::kWarp, token_sums<T>, p);
  if (!a.dlog_decay) return;
  if (a.shape.decay == Decay::feature)
    return recurrence::launch_blocks(cuda, p.heads * ((p.f + cuda::kWarp - 1) / cuda::kWarp), feature_decays<T>, p);
  recurrence::launch_blocks(cuda, p.heads, recurrence::sum_later<A>, p.ddecay, p.end, p.tokens, p.f);
  cuda::launch_elements(cuda, p.heads * p.tokens, head_decays<T>, p);
}

template void run(Cuda, const GatedDeltaRuleFwd<float>&);
template void run(Cuda, const GatedDeltaRuleFwd<double>&);
template void run(Cuda, const GatedDeltaRuleFwd<bf16>&);
template void run(Cuda, const GatedDeltaRuleBwd<float>&);
template void run(Cuda, const GatedDeltaRuleBwd<double>&);
template void run(Cuda, const GatedDeltaRuleBwd<bf16>&);

}  // namespace margay::kernels
