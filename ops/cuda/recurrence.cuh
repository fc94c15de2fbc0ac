#pragma once
#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

// The recurrence of linear attention, gated_delta_rule and ssd over a state S [f,dv] of each head:
//   P = diag(decay) S,   S = P + k w^T,   y = S^T q,   w = v or, with correction, w = beta (v - P^T k).
// Its columns do not meet in the forward pass, nor in that of the cotangents G of S; with w and dw known its rows do
// not meet either, so that each pass has one owner of every sum:
//   columns, forwards:   y and residuals v - P^T k;      columns, backwards: dw = G^T k, from which dv, and dinitial;
//   rows, forwards:      dq = S dy, and dk as what is read, -P (beta dw);
//   rows, backwards:     dk as what is written, G w;     with G = decay (G' - k (beta dw)^T) + q dy^T.
// Log decays get the sums over later tokens of q dq + k dk_read - k dk_written, to which the end adds dfinal . S.
//
// A block has kSide columns (or rows), and kSide threads for each, which keep R numbers each in registers.
// A problem says what to read and where results go, in numbers of the type A of sums:
//   heads, tokens, f, dv; corrects(); q, k, decay(head, t, i), v, dy, w, beta_dw(head, t, j), beta(head, t),
//   initial, dfinal(head, i, j); put_y(head, t, j, y, residual), put_final, put_dinitial(head, i, j, x),
//   put_dw(head, t, j, dw), put_dq(head, t, i, dq, dk_read), put_dk(head, t, i, dk_written), put_end(head, i, x).

namespace margay::kernels::recurrence {

inline constexpr int kSide = 16;

template <class A>
__device__ A sum_side(A value) {
  for (int distance = kSide / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

/// The row or column of a thread, and its place among the threads that share it.
struct Place {
  int64_t head, own;
  int lane;
  __device__ explicit Place(int64_t size)
      : head(blockIdx.x / ((size + kSide - 1) / kSide)),
        own(blockIdx.x % ((size + kSide - 1) / kSide) * kSide + threadIdx.x / kSide),
        lane(threadIdx.x % kSide) {}
  /// Whether the whole warp has nothing to do.
  __device__ bool idle(int64_t size) const { return own - threadIdx.x % cuda::kWarp / kSide >= size; }
};

template <class A, int R, class Problem>
__global__ void __launch_bounds__(cuda::kThreads) columns_forwards(Problem p) {
  const Place at(p.dv);
  if (at.idle(p.dv)) return;
  const int64_t j = at.own;
  const bool exists = j < p.dv;
  A state[R];
  for (int r = 0; r < R; ++r) {
    const int64_t i = at.lane + kSide * r;
    state[r] = exists && i < p.f ? p.initial(at.head, i, j) : A(0);
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    A held(0), y(0);
    for (int r = 0; r < R; ++r) {
      const int64_t i = at.lane + kSide * r;
      if (i >= p.f) break;
      state[r] *= p.decay(at.head, t, i);
      held += state[r] * p.k(at.head, t, i);
    }
    A w = exists ? p.v(at.head, t, j) : A(0);
    if (p.corrects()) w -= sum_side(held);
    const A residual = w;
    if (p.corrects()) w *= p.beta(at.head, t);
    for (int r = 0; r < R; ++r) {
      const int64_t i = at.lane + kSide * r;
      if (i >= p.f) break;
      state[r] += p.k(at.head, t, i) * w;
      y += state[r] * p.q(at.head, t, i);
    }
    y = sum_side(y);
    if (exists && at.lane == 0) p.put_y(at.head, t, j, y, residual);
  }
  for (int r = 0; r < R; ++r) {
    const int64_t i = at.lane + kSide * r;
    if (exists && i < p.f) p.put_final(at.head, i, j, state[r]);
  }
}

template <class A, int R, class Problem>
__global__ void __launch_bounds__(cuda::kThreads) columns_backwards(Problem p) {
  const Place at(p.dv);
  if (at.idle(p.dv)) return;
  const int64_t j = at.own;
  const bool exists = j < p.dv;
  A gradient[R];
  for (int r = 0; r < R; ++r) {
    const int64_t i = at.lane + kSide * r;
    gradient[r] = exists && i < p.f ? p.dfinal(at.head, i, j) : A(0);
  }
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    const A dy = exists ? p.dy(at.head, t, j) : A(0);
    A dw(0);
    for (int r = 0; r < R; ++r) {
      const int64_t i = at.lane + kSide * r;
      if (i >= p.f) break;
      gradient[r] += p.q(at.head, t, i) * dy;
      dw += gradient[r] * p.k(at.head, t, i);
    }
    dw = sum_side(dw);
    if (exists && at.lane == 0) p.put_dw(at.head, t, j, dw);
    const A back = p.corrects() ? p.beta(at.head, t) * dw : A(0);
    for (int r = 0; r < R; ++r) {
      const int64_t i = at.lane + kSide * r;
      if (i >= p.f) break;
      gradient[r] = p.decay(at.head, t, i) * (gradient[r] - p.k(at.head, t, i) * back);
    }
  }
  for (int r = 0; r < R; ++r) {
    const int64_t i = at.lane + kSide * r;
    if (exists && i < p.f) p.put_dinitial(at.head, i, j, gradient[r]);
  }
}

template <class A, int R, class Problem>
__global__ void __launch_bounds__(cuda::kThreads) rows_forwards(Problem p) {
  const Place at(p.f);
  if (at.idle(p.f)) return;
  const int64_t i = at.own;
  const bool exists = i < p.f;
  A state[R];
  for (int r = 0; r < R; ++r) {
    const int64_t j = at.lane + kSide * r;
    state[r] = exists && j < p.dv ? p.initial(at.head, i, j) : A(0);
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    const A decay = exists ? p.decay(at.head, t, i) : A(0), key = exists ? p.k(at.head, t, i) : A(0);
    A dq(0), read(0);
    for (int r = 0; r < R; ++r) {
      const int64_t j = at.lane + kSide * r;
      if (j >= p.dv) break;
      state[r] *= decay;
      if (p.corrects()) read -= state[r] * p.beta_dw(at.head, t, j);
      state[r] += key * p.w(at.head, t, j);
      dq += state[r] * p.dy(at.head, t, j);
    }
    dq = sum_side(dq);
    read = sum_side(read);
    if (exists && at.lane == 0) p.put_dq(at.head, t, i, dq, read);
  }
  A end(0);
  for (int r = 0; r < R; ++r) {
    const int64_t j = at.lane + kSide * r;
    if (exists && j < p.dv) end += p.dfinal(at.head, i, j) * state[r];
  }
  end = sum_side(end);
  if (exists && at.lane == 0) p.put_end(at.head, i, end);
}

template <class A, int R, class Problem>
__global__ void __launch_bounds__(cuda::kThreads) rows_backwards(Problem p) {
  const Place at(p.f);
  if (at.idle(p.f)) return;
  const int64_t i = at.own;
  const bool exists = i < p.f;
  A gradient[R];
  for (int r = 0; r < R; ++r) {
    const int64_t j = at.lane + kSide * r;
    gradient[r] = exists && j < p.dv ? p.dfinal(at.head, i, j) : A(0);
  }
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    const A decay = exists ? p.decay(at.head, t, i) : A(0), key = exists ? p.k(at.head, t, i) : A(0);
    const A query = exists ? p.q(at.head, t, i) : A(0);
    A written(0);
    for (int r = 0; r < R; ++r) {
      const int64_t j = at.lane + kSide * r;
      if (j >= p.dv) break;
      gradient[r] += query * p.dy(at.head, t, j);
      written += gradient[r] * p.w(at.head, t, j);
      gradient[r] = decay * (p.corrects() ? gradient[r] - key * p.beta_dw(at.head, t, j) : gradient[r]);
    }
    written = sum_side(written);
    if (exists && at.lane == 0) p.put_dk(at.head, t, i, written);
  }
}

/// Calls body.template operator()<R>() with enough registers for `size` numbers in kSide threads.
template <class Body>
void with_registers(int64_t size, const Body& body) {
  const int64_t needed = (size + kSide - 1) / kSide;
  if (needed <= 4) {
    body.template operator()<4>();
  } else if (needed <= 16) {
    body.template operator()<16>();
  } else if (needed <= 256) {
    body.template operator()<256>();  // in memory, in fact
  } else {
    throw DeviceError("the CUDA kernels of recurrences take states of at most 4096 rows and columns");
  }
}

template <class Problem>
dim3 grid_of(const Problem& p, int64_t size) {
  return dim3(static_cast<unsigned>(p.heads * ((size + kSide - 1) / kSide)));
}

/// y, and the states after the last token.
template <class A, class Problem>
void advance(Cuda cuda, const Problem& p) {
  const dim3 grid = grid_of(p, p.dv);
  if (grid.x == 0) return;
  with_registers(p.f,
                 [&]<int R>() { cuda::launch(cuda, grid, dim3(cuda::kThreads), columns_forwards<A, R, Problem>, p); });
}

/// Everything that goes backwards; residuals have to be there.
template <class A, class Problem>
void retreat(Cuda cuda, const Problem& p) {
  const dim3 columns = grid_of(p, p.dv), rows = grid_of(p, p.f), threads(cuda::kThreads);
  if (columns.x > 0)
    with_registers(p.f, [&]<int R>() { cuda::launch(cuda, columns, threads, columns_backwards<A, R, Problem>, p); });
  if (rows.x == 0) return;
  with_registers(p.dv, [&]<int R>() {
    cuda::launch(cuda, rows, threads, rows_forwards<A, R, Problem>, p);
    cuda::launch(cuda, rows, threads, rows_backwards<A, R, Problem>, p);
  });
}

/// Turns x[head, t] into its sums over t and later tokens, plus the sum of end[head, f]; a thread per head.
template <class A>
__global__ void __launch_bounds__(cuda::kThreads) sum_later(A* x, const A* end, int64_t heads, int64_t T, int64_t f) {
  for (int64_t head = cuda::first_index(); head < heads; head += cuda::index_step()) {
    double sum = 0;
    for (int64_t i = 0; i < f; ++i) sum += static_cast<double>(end[head * f + i]);
    for (int64_t t = T - 1; t >= 0; --t) {
      sum += static_cast<double>(x[head * T + t]);
      x[head * T + t] = static_cast<A>(sum);
    }
  }
}

}  // namespace margay::kernels::recurrence
