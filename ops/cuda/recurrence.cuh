#pragma once
#include "engine/cuda/reduce.cuh"
#include "engine/error.h"
#include "ops/cuda/recurrence_columns.cuh"
#include "ops/cuda/recurrence_rows.cuh"

// The recurrence of linear attention, gated_delta_rule and ssd over a state S [f,dv] of each head:
//   P = diag(decay) S,   S = P + k w^T,   y = S^T q,   w = v or, with correction, w = beta (v - P^T k).
// Its columns do not meet in the forward pass, nor in that of the cotangents G of S; with w and dw known its rows do
// not meet either, so that each pass has one owner of every sum:
//   columns, forwards:   y and residuals v - P^T k;      columns, backwards: dw = G^T k, from which dv, and dinitial;
//   rows, forwards:      dq = S dy, and dk as what is read, -P (beta dw);
//   rows, backwards:     dk as what is written, G w;     with G = decay (G' - k (beta dw)^T) + q dy^T.
// Log decays get the sums over later tokens of q dq + k dk_read - k dk_written, to which the end adds dfinal . S.
//
// Without correction a chunk of tokens maps S to D S + (what it makes of 0), D the product of its decays. So those are
// found for all chunks at once, then carried from chunk to chunk by a thread per number of the state, and the passes
// above walk over all chunks at once; likewise backwards, for G.
//
// A problem says what to read and where results go, in numbers of the type A of sums:
//   heads, tokens, f, dv; corrects(), forgets(): whether there are betas and decays; forgets_features(): whether decays
//   differ between features; chunks, one with correction; states, gradients [heads,chunks - 1,f,dv]: of S between
//   chunks; chunk_decays [heads,chunks - 1,f]; q, k, decay(head, t, i), v, dy, w, beta_dw(head, t, j), beta(head, t),
//   initial, dfinal(head, i, j); put_y(head, t, j, y, residual, if it corrects), put_final, put_dinitial(head, i, j,
//   x), put_dw(head, t, j, dw), put_dq(head, t, i, dq, dk_read), put_dk(head, t, i, dk_written), put_end(head, i, x).
// retreat() expects the states and the residuals that advance() has left.

namespace margay::kernels::recurrence {

/// Turns what chunks make of 0 into what they leave after all before them: the states after each, from `initial` on, or
/// the gradients of the states before each, from `dfinal` on. A thread per number of a state.
template <class A, bool backwards, class Problem>
__global__ void __launch_bounds__(cuda::kThreads) carry(Problem p) {
  constexpr int64_t together = 8;  // reads that do not wait for each other
  const int64_t size = p.f * p.dv, borders = p.chunks.count - 1;
  for (int64_t at = cuda::first_index(); at < p.heads * size; at += cuda::index_step()) {
    const int64_t head = at / size, i = at / p.dv % p.f, j = at % p.dv;
    const auto border = [&](int64_t n) { return head * borders + (backwards ? borders - 1 - n : n); };
    A *all, sum;
    if constexpr (backwards) {
      all = p.gradients;
      sum = p.dfinal(head, i, j);
    } else {
      all = p.states;
      sum = p.initial(head, i, j);
    }
    for (int64_t first = 0; first < borders; first += together) {
      A own[together], decay[together];
#pragma unroll
      for (int64_t n = 0; n < together; ++n) {
        const bool exists = first + n < borders;
        own[n] = exists ? all[border(first + n) * size + at % size] : A(0);
        decay[n] = exists && p.forgets() ? p.chunk_decays[border(first + n) * p.f + i] : A(1);
      }
#pragma unroll
      for (int64_t n = 0; n < together; ++n) {
        sum = decay[n] * sum + own[n];
        if (first + n < borders) all[border(first + n) * size + at % size] = sum;
      }
    }
  }
}

/// Calls body.template operator()<R>() with enough registers for `size` numbers in kLanes threads.
template <class Body>
void with_registers(int64_t size, const Body& body) {
  if (size <= 4 * kLanes) {
    body.template operator()<4>();
  } else if (size <= 16 * kLanes) {
    body.template operator()<16>();
  } else if (size <= kMostSize) {
    body.template operator()<kMostSize / kLanes>();  // in memory, in fact
  } else {
    throw DeviceError("the CUDA kernels of recurrences take states of at most 4096 rows and columns");
  }
}

/// Starts a pass over `chunks` chunks of all heads, with R numbers in a thread of each of `size` columns or rows.
template <class A, int R, class Problem>
void start(Cuda cuda, void (*pass)(Problem, Tiling), const Problem& p, int64_t chunks, int64_t size,
           const Tiling& tiling) {
  const int64_t width = kGroups * kColumns<R>, blocks = p.heads * chunks * ((size + width - 1) / width);
  if (blocks > 0)
    cuda::launch_shared(cuda, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                        static_cast<size_t>(tiling.tokens) * static_cast<size_t>(tiling.row) * sizeof(A), pass, p,
                        tiling);
}

template <class A, int R, class Problem>
Tiling columns_tiling(const Problem& p) {
  const int wide = padded(p.f);
  return tiling_of<A>(wide, ColumnToken<A>::row_of(p, wide, kGroups * kColumns<R>));
}

template <class A, int R, class Problem>
Tiling rows_tiling(const Problem& p) {
  const int wide = padded(p.dv);
  return tiling_of<A>(wide, RowToken<A>::row_of(p, wide, kGroups * kColumns<R>));
}

/// y, and the states between chunks and after the last token.
template <class A, class Problem>
void advance(Cuda cuda, const Problem& p) {
  with_registers(p.f, [&]<int R>() {
    const Tiling tiling = columns_tiling<A, R>(p);
    if (p.chunks.count > 1) {
      start<A, R>(cuda, columns_forwards<A, R, true, Problem>, p, p.chunks.count - 1, p.dv, tiling);
      cuda::launch_elements(cuda, p.heads * p.f * p.dv, carry<A, false, Problem>, p);
    }
    start<A, R>(cuda, columns_forwards<A, R, false, Problem>, p, p.chunks.count, p.dv, tiling);
  });
}

/// Everything that goes backwards.
template <class A, class Problem>
void retreat(Cuda cuda, const Problem& p) {
  with_registers(p.f, [&]<int R>() {
    const Tiling tiling = columns_tiling<A, R>(p);
    if (p.chunks.count > 1) {
      start<A, R>(cuda, columns_backwards<A, R, true, Problem>, p, p.chunks.count - 1, p.dv, tiling);
      cuda::launch_elements(cuda, p.heads * p.f * p.dv, carry<A, true, Problem>, p);
    }
    start<A, R>(cuda, columns_backwards<A, R, false, Problem>, p, p.chunks.count, p.dv, tiling);
  });
  with_registers(p.dv, [&]<int R>() {
    const Tiling tiling = rows_tiling<A, R>(p);
    start<A, R>(cuda, rows_forwards<A, R, Problem>, p, p.chunks.count, p.f, tiling);
    start<A, R>(cuda, rows_backwards<A, R, Problem>, p, p.chunks.count, p.f, tiling);
  });
}

/// Starts a kernel with a block of cuda::kThreads for each of `count` things.
template <class... Parameters, class... Arguments>
void launch_blocks(Cuda cuda, int64_t count, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (count > 0) cuda::launch(cuda, dim3(static_cast<unsigned>(count)), dim3(cuda::kThreads), kernel, arguments...);
}

/// x[head, t] becomes the sum of x over t and later tokens, plus that of end[head, f]; a block per head.
template <class A>
__global__ void __launch_bounds__(cuda::kThreads) sum_later(A* x, const A* end, int64_t T, int64_t f) {
  constexpr int warps = cuda::kThreads / cuda::kWarp;
  __shared__ double sums[warps];  // of the tokens of each
  const int64_t head = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp, warp = static_cast<int>(threadIdx.x) / cuda::kWarp;
  double later = 0;
  for (int64_t i = threadIdx.x; i < f; i += cuda::kThreads) later += static_cast<double>(end[head * f + i]);
  later = cuda::block_reduce<cuda::Sum>(later);
  for (int64_t tile = (T - 1) / cuda::kThreads; T > 0 && tile >= 0; --tile) {
    const int64_t t = tile * cuda::kThreads + threadIdx.x;
    double sum = t < T ? static_cast<double>(x[head * T + t]) : 0;
    for (int distance = 1; distance < cuda::kWarp; distance *= 2) {
      const double other = __shfl_down_sync(0xffffffffu, sum, static_cast<unsigned>(distance));
      if (lane + distance < cuda::kWarp) sum += other;
    }
    __syncthreads();  // the sums of the tile before have been read
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    for (int other = warps - 1; other > warp; --other) sum += sums[other];
    if (t < T) x[head * T + t] = static_cast<A>(sum + later);
    for (int other = warps - 1; other >= 0; --other) later += sums[other];
  }
}

}  // namespace margay::kernels::recurrence
