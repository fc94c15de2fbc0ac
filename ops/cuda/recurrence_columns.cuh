#pragma once
#include "engine/host_device.h"
#include "ops/cuda/recurrence_walk.cuh"

// The passes of a recurrence over columns (ops/cuda/recurrence.cuh), each over the tokens of a chunk from the state
// before it or, backwards, from the gradient of the state after it.

namespace margay::kernels::recurrence {

/// A token in the tile of a pass over columns: k, q and decays along the lanes, v or dy of the block's columns.
template <class A>
struct ColumnToken {
  A *q, *k, *decays, *own, *beta;

  template <class Problem>
  HOST_DEVICE static int decays_of(const Problem& p, int wide) {
    return p.forgets_features() ? wide : 1;
  }
  template <class Problem>
  HOST_DEVICE static int row_of(const Problem& p, int wide, int width) {
    return 2 * wide + decays_of(p, wide) + width + 1;
  }
  template <class Problem>
  __device__ ColumnToken(const Problem& p, A* row, const Tiling& tiling, int width)
      : q(row),
        k(q + tiling.wide),
        decays(k + tiling.wide),
        own(decays + decays_of(p, tiling.wide)),
        beta(own + width) {}

  template <class Problem>
  __device__ A decay(const Problem& p, int i) const {
    return p.forgets() ? decays[p.forgets_features() ? i : 0] : A(1);
  }
};

/// Copies a tile of tokens from `first` on; q and k only where they are wanted.
template <class A, class Problem, class Position, class Own>
__device__ void stage_columns(const Problem& p, A* tile, const Tiling& tiling, const Position& at, int64_t first,
                              int tokens, bool wants_q, bool wants_k, const Own& own) {
  const ColumnToken<A> to(p, tile, tiling, Position::kWidth);
  const auto copy = [&](A* place, int width, int64_t size, const auto& value) {
    stage(place, tiling.row, tokens, width, size, value);
  };
  if (wants_q) copy(to.q, tiling.wide, p.f, [&](int t, int64_t i) { return p.q(at.head, first + t, i); });
  if (wants_k) copy(to.k, tiling.wide, p.f, [&](int t, int64_t i) { return p.k(at.head, first + t, i); });
  if (p.forgets()) {
    const int width = ColumnToken<A>::decays_of(p, tiling.wide);
    copy(to.decays, width, min(int64_t{width}, p.f), [&](int t, int64_t i) { return p.decay(at.head, first + t, i); });
  }
  copy(to.own, Position::kWidth, p.dv - at.begin, [&](int t, int64_t c) { return own(first + t, at.begin + c); });
  if (p.corrects()) copy(to.beta, 1, 1, [&](int t, int64_t) { return p.beta(at.head, first + t); });
}

/// Of the numbers of a lane, the products of the decays of a chunk: once for all columns.
template <class A, int R, class Problem, class Position>
__device__ void put_chunk_decays(const Problem& p, const Position& at, int wide, const A (&products)[R]) {
  if (!p.forgets() || at.own > 0) return;
  for_numbers<R>(wide, [&](int r) {
    const int64_t i = at.lane + kLanes * r;
    if (i < p.f) p.chunk_decays[(at.head * (p.chunks.count - 1) + at.chunk) * p.f + i] = products[r];
  });
}

/// y and the states after the last token; or, `local`, only what the tokens of each chunk but the last add to the
/// state, and their decays.
template <class A, int R, bool local, class Problem>
__global__ void __launch_bounds__(kThreads, kResident<A, R>) columns_forwards(Problem p, Tiling tiling) {
  constexpr int C = kColumns<R>;
  const Place<C> at(p.dv, p.chunks.count - local);
  A* const tile = cuda::dynamic_shared<Tile<A>>().numbers;
  A state[R][C], products[R];
  for_numbers<R>(tiling.wide, [&](int r) { products[r] = A(1); });
  for_all<R, C>(tiling.wide, [&](int r, int c) {
    state[r][c] = local ? A(0) : state_before<A>(p, at.head, at.chunk, at.lane + kLanes * r, at.own + c);
  });
  const auto load = [&](int64_t first, int tokens) {
    stage_columns(p, tile, tiling, at, first, tokens, !local, true,
                  [&](int64_t t, int64_t j) { return p.v(at.head, t, j); });
  };
  const auto step = [&](int64_t t, int n) {
    const ColumnToken<A> token(p, tile + n * tiling.row, tiling, at.kWidth);
    A w[C], y[C] = {}, residual(0);
#pragma unroll
    for (int c = 0; c < C; ++c) w[c] = token.own[at.local + c];
    if (p.corrects()) {
      A held[C] = {};
      for_numbers<R>(tiling.wide, [&](int r) {
        const int i = at.lane + kLanes * r;
        const A key = token.decay(p, i) * token.k[i];
#pragma unroll
        for (int c = 0; c < C; ++c) held[c] += key * state[r][c];
      });
      residual = token.own[at.local + at.column()] - sum_lanes(held);
      share(*token.beta * residual, w);
    }
    for_numbers<R>(tiling.wide, [&](int r) {
      const int i = at.lane + kLanes * r;
      const A key = token.k[i], query = local ? A(0) : token.q[i], decay = token.decay(p, i);
      if constexpr (local) products[r] *= decay;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        state[r][c] = decay * state[r][c] + key * w[c];
        if constexpr (!local) y[c] += query * state[r][c];
      }
    });
    if constexpr (!local) {
      const A sum = sum_lanes(y);
      if (at.writes(p.dv)) p.put_y(at.head, t, at.own + at.column(), sum, residual);
    }
  };
  walk<false>(at.chunk * p.chunks.tokens, end_of(p, at.chunk), tiling.tokens, at.idle(p.dv), load, step);
  if constexpr (local) put_chunk_decays(p, at, tiling.wide, products);
  if (!local && at.chunk < p.chunks.count - 1) return;
  for_all<R, C>(tiling.wide, [&](int r, int c) {
    const int64_t i = at.lane + kLanes * r, j = at.own + c;
    if (i >= p.f || j >= p.dv) return;
    if constexpr (local) {
      p.states[border_at(p, at.head, at.chunk, i, j)] = state[r][c];
    } else {
      p.put_final(at.head, i, j, state[r][c]);
    }
  });
}

/// dw and the gradients of the states before the first token; or, `local`, only what the tokens of each chunk but the
/// first add to the gradient of the state before it, and their decays.
template <class A, int R, bool local, class Problem>
__global__ void __launch_bounds__(kThreads, kResident<A, R>) columns_backwards(Problem p, Tiling tiling) {
  constexpr int C = kColumns<R>;
  const Place<C> at(p.dv, p.chunks.count - local);
  const int64_t chunk = at.chunk + local;
  A* const tile = cuda::dynamic_shared<Tile<A>>().numbers;
  A gradient[R][C], products[R];
  for_numbers<R>(tiling.wide, [&](int r) { products[r] = A(1); });
  for_all<R, C>(tiling.wide, [&](int r, int c) {
    gradient[r][c] = local ? A(0) : gradient_after<A>(p, at.head, chunk, at.lane + kLanes * r, at.own + c);
  });
  const auto load = [&](int64_t first, int tokens) {
    stage_columns(p, tile, tiling, at, first, tokens, true, !local,
                  [&](int64_t t, int64_t j) { return p.dy(at.head, t, j); });
  };
  const auto step = [&](int64_t t, int n) {
    const ColumnToken<A> token(p, tile + n * tiling.row, tiling, at.kWidth);
    A dy[C], dw[C] = {}, back[C] = {};
#pragma unroll
    for (int c = 0; c < C; ++c) dy[c] = token.own[at.local + c];
    for_numbers<R>(tiling.wide, [&](int r) {
      const int i = at.lane + kLanes * r;
      const A query = token.q[i], key = local ? A(0) : token.k[i];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        gradient[r][c] += query * dy[c];
        if constexpr (!local) dw[c] += key * gradient[r][c];
      }
    });
    if constexpr (!local) {
      const A sum = sum_lanes(dw);
      if (at.writes(p.dv)) p.put_dw(at.head, t, at.own + at.column(), sum);
      if (p.corrects()) share(*token.beta * sum, back);
    }
    if (!p.corrects() && !p.forgets()) return;
    for_numbers<R>(tiling.wide, [&](int r) {
      const int i = at.lane + kLanes * r;
      const A key = p.corrects() ? token.k[i] : A(0), decay = token.decay(p, i);
      if constexpr (local) products[r] *= decay;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (p.corrects()) gradient[r][c] -= key * back[c];
        gradient[r][c] *= decay;
      }
    });
  };
  walk<true>(chunk * p.chunks.tokens, end_of(p, chunk), tiling.tokens, at.idle(p.dv), load, step);
  if constexpr (local) put_chunk_decays(p, at, tiling.wide, products);
  if (!local && chunk > 0) return;
  for_all<R, C>(tiling.wide, [&](int r, int c) {
    const int64_t i = at.lane + kLanes * r, j = at.own + c;
    if (i >= p.f || j >= p.dv) return;
    if constexpr (local) {
      p.gradients[border_at(p, at.head, at.chunk, i, j)] = gradient[r][c];
    } else {
      p.put_dinitial(at.head, i, j, gradient[r][c]);
    }
  });
}

}  // namespace margay::kernels::recurrence
