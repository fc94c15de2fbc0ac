#pragma once
#include "engine/host_device.h"
#include "ops/cuda/recurrence_walk.cuh"

// The passes of a recurrence over rows (ops/cuda/recurrence.cuh), each over the tokens of a chunk from the state before
// it or, backwards, from the gradient of the state after it.

namespace margay::kernels::recurrence {

/// A token in the tile of a pass over rows: dy, w and beta dw along the lanes, k, q and decays of the block's rows.
template <class A>
struct RowToken {
  A *dy, *w, *back, *k, *q, *decay;

  template <class Problem>
  HOST_DEVICE static int row_of(const Problem& p, int wide, int width) {
    return (p.corrects() ? 3 : 2) * wide + 3 * width;
  }
  template <class Problem>
  __device__ RowToken(const Problem& p, A* row, const Tiling& tiling, int width)
      : dy(row),
        w(dy + tiling.wide),
        back(w + tiling.wide),
        k(p.corrects() ? back + tiling.wide : back),
        q(k + width),
        decay(q + width) {}
};

template <class A, class Problem, class Position>
__device__ void stage_rows(const Problem& p, A* tile, const Tiling& tiling, const Position& at, int64_t first,
                           int tokens, bool wants_q) {
  const RowToken<A> to(p, tile, tiling, Position::kWidth);
  const auto along = [&](A* place, const auto& value) {
    stage(place, tiling.row, tokens, tiling.wide, p.dv, [&](int t, int64_t j) { return value(first + t, j); });
  };
  const auto own = [&](A* place, const auto& value) {
    stage(place, tiling.row, tokens, Position::kWidth, p.f - at.begin,
          [&](int t, int64_t c) { return value(first + t, at.begin + c); });
  };
  along(to.dy, [&](int64_t t, int64_t j) { return p.dy(at.head, t, j); });
  along(to.w, [&](int64_t t, int64_t j) { return p.w(at.head, t, j); });
  if (p.corrects()) along(to.back, [&](int64_t t, int64_t j) { return p.beta_dw(at.head, t, j); });
  own(to.k, [&](int64_t t, int64_t i) { return p.k(at.head, t, i); });
  if (wants_q) own(to.q, [&](int64_t t, int64_t i) { return p.q(at.head, t, i); });
  if (p.forgets()) own(to.decay, [&](int64_t t, int64_t i) { return p.decay(at.head, t, i); });
}

/// dq, dk as what is read, and dfinal . S of every row.
template <class A, int R, class Problem>
__global__ void __launch_bounds__(kThreads, kResident<A, R>) rows_forwards(Problem p, Tiling tiling) {
  constexpr int C = kColumns<R>;
  const Place<C> at(p.f, p.chunks.count);
  A* const tile = cuda::dynamic_shared<Tile<A>>().numbers;
  A state[R][C];
  for_numbers<R>(tiling.wide, [&](int r) {
#pragma unroll
    for (int c = 0; c < C; ++c) state[r][c] = state_before<A>(p, at.head, at.chunk, at.own + c, at.lane + kLanes * r);
  });
  const auto load = [&](int64_t first, int tokens) { stage_rows(p, tile, tiling, at, first, tokens, false); };
  const auto step = [&](int64_t t, int n) {
    const RowToken<A> token(p, tile + n * tiling.row, tiling, at.kWidth);
    A key[C], decay[C], dq[C] = {}, read[C] = {};
#pragma unroll
    for (int c = 0; c < C; ++c) {
      key[c] = token.k[at.local + c];
      decay[c] = p.forgets() ? token.decay[at.local + c] : A(1);
    }
    for_numbers<R>(tiling.wide, [&](int r) {
      const int j = at.lane + kLanes * r;
      const A w = token.w[j], dy = token.dy[j], back = p.corrects() ? token.back[j] : A(0);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        state[r][c] *= decay[c];
        if (p.corrects()) read[c] -= state[r][c] * back;
        state[r][c] += key[c] * w;
        dq[c] += state[r][c] * dy;
      }
    });
    const A sum = sum_lanes(dq), dk = p.corrects() ? sum_lanes(read) : A(0);
    if (at.writes(p.f)) p.put_dq(at.head, t, at.own + at.column(), sum, dk);
  };
  walk<false>(at.chunk * p.chunks.tokens, end_of(p, at.chunk), tiling.tokens, at.idle(p.f), load, step);
  if (at.chunk < p.chunks.count - 1 || at.idle(p.f)) return;
  A end[C] = {};
  for_numbers<R>(tiling.wide, [&](int r) {
    const int64_t j = at.lane + kLanes * r;
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (at.own + c < p.f && j < p.dv) end[c] += p.dfinal(at.head, at.own + c, j) * state[r][c];
  });
  const A sum = sum_lanes(end);
  if (at.writes(p.f)) p.put_end(at.head, at.own + at.column(), sum);
}

/// dk as what is written.
template <class A, int R, class Problem>
__global__ void __launch_bounds__(kThreads, kResident<A, R>) rows_backwards(Problem p, Tiling tiling) {
  constexpr int C = kColumns<R>;
  const Place<C> at(p.f, p.chunks.count);
  A* const tile = cuda::dynamic_shared<Tile<A>>().numbers;
  A gradient[R][C];
  for_all<R, C>(tiling.wide, [&](int r, int c) {
    gradient[r][c] = gradient_after<A>(p, at.head, at.chunk, at.own + c, at.lane + kLanes * r);
  });
  const auto load = [&](int64_t first, int tokens) { stage_rows(p, tile, tiling, at, first, tokens, true); };
  const auto step = [&](int64_t t, int n) {
    const RowToken<A> token(p, tile + n * tiling.row, tiling, at.kWidth);
    A key[C], query[C], decay[C], written[C] = {};
#pragma unroll
    for (int c = 0; c < C; ++c) {
      key[c] = token.k[at.local + c];
      query[c] = token.q[at.local + c];
      decay[c] = p.forgets() ? token.decay[at.local + c] : A(1);
    }
    for_numbers<R>(tiling.wide, [&](int r) {
      const int j = at.lane + kLanes * r;
      const A w = token.w[j], dy = token.dy[j], back = p.corrects() ? token.back[j] : A(0);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        gradient[r][c] += query[c] * dy;
        written[c] += gradient[r][c] * w;
        if (p.corrects()) gradient[r][c] -= key[c] * back;
        gradient[r][c] *= decay[c];
      }
    });
    const A sum = sum_lanes(written);
    if (at.writes(p.f)) p.put_dk(at.head, t, at.own + at.column(), sum);
  };
  walk<true>(at.chunk * p.chunks.tokens, end_of(p, at.chunk), tiling.tokens, at.idle(p.f), load, step);
}

}  // namespace margay::kernels::recurrence
