#include "ops/ssd.h"

#include "ops/cuda/recurrence.cuh"

namespace margay::kernels {
namespace {

// The recurrence with q = C_t, k = step_t B_t, v = x_t and the decay e^(step_t A), token after token inside its chunks:
// not the matrix products that the CPU has.

template <class T>
__device__ const T* token_of(const TokenRows<const T>& rows, int64_t batch, int64_t token) {
  return rows.data + batch * rows.batch_stride + token * rows.row_stride;
}

/// What both passes read (ops/cuda/recurrence.cuh): f counts states, dv the channels of a head.
template <class T>
struct Inputs {
  using A = acc_t<T>;
  SsdInputs<T> in;
  int64_t heads, tokens, f, dv;
  RecurrenceChunks chunks;
  A* chunk_decays;

  Inputs(const SsdInputs<T>& in, A* chunk_decays)
      : in(in),
        heads(in.shape.all_heads()),
        tokens(in.shape.length),
        f(in.shape.states),
        dv(in.shape.head_dim),
        chunks(in.shape.gpu_chunks()),
        chunk_decays(chunk_decays) {}
  __device__ int64_t batch_of(int64_t head) const { return head / in.shape.heads; }
  __device__ int64_t head_of(int64_t head) const { return head % in.shape.heads; }
  __device__ A step(int64_t head, int64_t t) const { return A(token_of(in.step, batch_of(head), t)[head_of(head)]); }
  __device__ A rate(int64_t head) const { return A(in.A[head_of(head)]); }
  __device__ A skip(int64_t head) const { return A(in.D[head_of(head)]); }
  __device__ A key(int64_t head, int64_t t, int64_t i) const { return A(token_of(in.B, batch_of(head), t)[i]); }
  /// Of an element in [B,L,H*P].
  __device__ int64_t channel_at(int64_t head, int64_t t, int64_t j) const {
    return ((batch_of(head) * tokens + t) * in.shape.heads + head_of(head)) * dv + j;
  }

  HOST_DEVICE bool corrects() const { return false; }
  HOST_DEVICE bool forgets() const { return true; }
  HOST_DEVICE bool forgets_features() const { return false; }
  __device__ A beta(int64_t, int64_t) const { return A(1); }
  __device__ A beta_dw(int64_t, int64_t, int64_t) const { return A(0); }
  __device__ A decay(int64_t head, int64_t t, int64_t) const { return std::exp(step(head, t) * rate(head)); }
  __device__ A q(int64_t head, int64_t t, int64_t i) const { return A(token_of(in.C, batch_of(head), t)[i]); }
  __device__ A k(int64_t head, int64_t t, int64_t i) const { return step(head, t) * key(head, t, i); }
  __device__ A v(int64_t head, int64_t t, int64_t j) const {
    return A(token_of(in.x, batch_of(head), t)[head_of(head) * dv + j]);
  }
  __device__ A w(int64_t head, int64_t t, int64_t j) const { return v(head, t, j); }
  __device__ A initial(int64_t head, int64_t i, int64_t j) const {
    return in.initial ? A(in.initial[(head * f + i) * dv + j]) : A(0);
  }
};

template <class T>
struct Forward : Inputs<T> {
  using A = acc_t<T>;
  A* states;
  T *y, *final;
  explicit Forward(const SsdFwd<T>& a) : Inputs<T>(a.in, a.workspace), states(a.checkpoints), y(a.y), final(a.final) {}
  __device__ void put_y(int64_t head, int64_t t, int64_t j, A value, A) const {
    y[this->channel_at(head, t, j)] = T(value + this->skip(head) * this->v(head, t, j));
  }
  __device__ void put_final(int64_t head, int64_t i, int64_t j, A value) const {
    final[(head * this->f + i) * this->dv + j] = T(value);
  }
};

template <class T>
struct Backward : Inputs<T> {
  using A = acc_t<T>;
  using Inputs<T>::f, Inputs<T>::dv, Inputs<T>::tokens;
  SsdBwd<T> a;
  const A* states;
  A *gradients, *dq, *dk, *ddecay, *end;  // states twice, [B,H,L,N] twice, [B,H,L], [B,H,N]
  A *dA, *dD;                             // [H,B,chunks] twice

  explicit Backward(const SsdBwd<T>& a)
      : Inputs<T>(a.in, a.workspace),
        a(a),
        states(a.checkpoints),
        gradients(a.workspace + a.in.shape.gpu_decays_size()),
        dq(gradients + a.in.shape.checkpoints_size(DeviceType::cuda)),
        dk(dq + this->heads * tokens * f),
        ddecay(dk + this->heads * tokens * f),
        end(ddecay + this->heads * tokens),
        dA(end + this->heads * f),
        dD(dA + this->heads * this->chunks.count) {}
  __device__ A dy(int64_t head, int64_t t, int64_t j) const { return A(a.dy[this->channel_at(head, t, j)]); }
  __device__ A dfinal(int64_t head, int64_t i, int64_t j) const {
    return a.dfinal ? A(a.dfinal[(head * f + i) * dv + j]) : A(0);
  }
  __device__ void put_dinitial(int64_t head, int64_t i, int64_t j, A value) const {
    if (a.dinitial) a.dinitial[(head * f + i) * dv + j] = T(value);
  }
  __device__ void put_dw(int64_t head, int64_t t, int64_t j, A dw) const {
    a.dx[this->channel_at(head, t, j)] = T(dw + this->skip(head) * dy(head, t, j));
  }
  __device__ void put_dq(int64_t head, int64_t t, int64_t i, A value, A) const {
    dq[(head * tokens + t) * f + i] = value;
  }
  __device__ void put_dk(int64_t head, int64_t t, int64_t i, A value) const { dk[(head * tokens + t) * f + i] = value; }
  __device__ void put_end(int64_t head, int64_t i, A value) const { end[head * f + i] = value; }
};

// A warp per token of a head: what it adds to the gradients of the logarithms of the decays up to it.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) decay_terms(Backward<T> p) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % cuda::kWarp;
  for (int64_t at = cuda::first_index() / cuda::kWarp; at < p.heads * p.tokens;
       at += cuda::index_step() / cuda::kWarp) {
    const int64_t t = at % p.tokens, head = at / p.tokens;
    A sum(0);
    for (int64_t i = lane; i < p.f; i += cuda::kWarp)
      sum += p.q(head, t, i) * p.dq[at * p.f + i] - p.k(head, t, i) * p.dk[at * p.f + i];
    sum = cuda::warp_sum(sum);
    if (lane == 0) p.ddecay[at] = sum;
  }
}

// dstep = B . dk + A d(log decay); a warp per token of a head.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) step_gradient(Backward<T> p) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % cuda::kWarp;
  for (int64_t at = cuda::first_index() / cuda::kWarp; at < p.heads * p.tokens;
       at += cuda::index_step() / cuda::kWarp) {
    const int64_t t = at % p.tokens, head = at / p.tokens;
    A sum(0);
    for (int64_t i = lane; i < p.f; i += cuda::kWarp) sum += p.key(head, t, i) * p.dk[at * p.f + i];
    sum = cuda::warp_sum(sum);
    if (lane == 0)
      p.a.dstep[(p.batch_of(head) * p.tokens + t) * p.in.shape.heads + p.head_of(head)] =
          T(sum + p.rate(head) * p.ddecay[at]);
  }
}

// dB and dC: sums over the heads; a thread per element.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) state_gradients(Backward<T> p) {
  using A = acc_t<T>;
  const SsdShape& s = p.in.shape;
  for (int64_t at = cuda::first_index(); at < s.batch * s.length * s.states; at += cuda::index_step()) {
    const int64_t i = at % s.states, t = at / s.states % s.length, batch = at / s.states / s.length;
    A dB(0), dC(0);
    for (int64_t head = batch * s.heads; head < (batch + 1) * s.heads; ++head) {
      const int64_t from = (head * s.length + t) * s.states + i;
      dB += p.step(head, t) * p.dk[from];
      dC += p.dq[from];
    }
    p.a.dB[at] = T(dB);
    p.a.dC[at] = T(dC);
  }
}

// dA = sum of step d(log decay), dD = sum of x dy: a block per chunk of a head of a sequence, then one per head.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) chunk_gradients(Backward<T> p) {
  using A = acc_t<T>;
  const int64_t head = blockIdx.x / p.chunks.count, chunk = blockIdx.x % p.chunks.count;
  const int64_t begin = chunk * p.chunks.tokens, end = min(begin + p.chunks.tokens, p.tokens);
  A dA(0), dD(0);
  for (int64_t t = begin + threadIdx.x; t < end; t += cuda::kThreads)
    dA += p.step(head, t) * p.ddecay[head * p.tokens + t];
  for (int64_t t = begin + threadIdx.x / cuda::kWarp; t < end; t += cuda::kThreads / cuda::kWarp)
    for (int64_t j = threadIdx.x % cuda::kWarp; j < p.dv; j += cuda::kWarp) dD += p.v(head, t, j) * p.dy(head, t, j);
  dA = cuda::block_reduce<cuda::Sum>(dA);
  dD = cuda::block_reduce<cuda::Sum>(dD);
  if (threadIdx.x > 0) return;
  const int64_t to = (p.head_of(head) * p.in.shape.batch + p.batch_of(head)) * p.chunks.count + chunk;
  p.dA[to] = dA;
  p.dD[to] = dD;
}
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) head_gradients(Backward<T> p) {
  using A = acc_t<T>;
  const int64_t parts = p.in.shape.batch * p.chunks.count;
  A dA(0), dD(0);
  for (int64_t n = threadIdx.x; n < parts; n += cuda::kThreads) {
    dA += p.dA[blockIdx.x * parts + n];
    dD += p.dD[blockIdx.x * parts + n];
  }
  dA = cuda::block_reduce<cuda::Sum>(dA);
  dD = cuda::block_reduce<cuda::Sum>(dD);
  if (threadIdx.x > 0) return;
  p.a.dA[blockIdx.x] = T(dA);
  p.a.dD[blockIdx.x] = T(dD);
}

}  // namespace

template <class T>
void run(Cuda cuda, const SsdFwd<T>& a) {
  recurrence::advance<acc_t<T>>(cuda, Forward<T>(a));
}

template <class T>
void run(Cuda cuda, const SsdBwd<T>& a) {
  using A = acc_t<T>;
  const SsdShape& s = a.in.shape;
  const Backward<T> p(a);
  recurrence::retreat<A>(cuda, p);
  cuda::launch_elements(cuda, p.heads * p.tokens * cuda::kWarp, decay_terms<T>, p);
  recurrence::launch_blocks(cuda, p.heads, recurrence::sum_later<A>, p.ddecay, p.end, p.tokens, p.f);
  cuda::launch_elements(cuda, p.heads * p.tokens * cuda::kWarp, step_gradient<T>, p);
  cuda::launch_elements(cuda, s.batch * s.length * s.states, state_gradients<T>, p);
  recurrence::launch_blocks(cuda, p.heads * p.chunks.count, chunk_gradients<T>, p);
  recurrence::launch_blocks(cuda, s.heads, head_gradients<T>, p);
}

template void run(Cuda, const SsdFwd<float>&);
template void run(Cuda, const SsdFwd<double>&);
template void run(Cuda, const SsdFwd<bf16>&);
template void run(Cuda, const SsdBwd<float>&);
template void run(Cuda, const SsdBwd<double>&);
template void run(Cuda, const SsdBwd<bf16>&);

}  // namespace margay::kernels
