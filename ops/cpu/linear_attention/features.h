#pragma once
#include <cmath>
#include <limits>

#include "engine/parallel.h"
#include "ops/cpu/blas.h"
#include "ops/cpu/causal_attention/tile.h"
#include "ops/linear_attention.h"

// What forward and backward share: features of some rows. Those of taylor2 are made for one tile at a time, transposed
// (a row per feature and a lane per token), so that every product of two numbers is one vector operation.

namespace margay::kernels::linear_attention {

using attention::KeyTile;
using attention::kKeys;
using attention::kQueries;
using attention::QueryTile;

static_assert(kKeys<float> == LinearAttentionShape::kTile && kKeys<double> == LinearAttentionShape::kTile);

/// Rows of queries and keys are weighed like those of causal attention that sees everything before.
inline AttentionShape tile_shape(const LinearAttentionShape& s) { return {s.B, s.H, s.T, s.T, s.f, s.T}; }

/// The tokens first ... end - 1 of a chunk.
struct Chunk {
  int64_t head, index, first, end;

  Chunk(const LinearAttentionShape& s, int64_t unit)
      : head(unit / s.chunks()),
        index(unit % s.chunks()),
        first(index * s.chunk()),
        end(std::min(s.T, first + s.chunk())) {}
};

/// Calls body(unit, scratch) for all heads and chunks.
template <class Args, class Body>
void for_each_unit(Cpu cpu, const Args& a, const Body& body) {
  const int64_t units = a.shape.units(), pieces = a.shape.pieces(a.scratch_size());
  parallel_for(cpu, pieces, [&](int64_t piece) {
    for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit)
      body(Chunk(a.shape, unit), a.workspace + piece * a.scratch_size());
  });
}

/// Calls body(head, begin, end) for all elements of the states of all heads.
template <class Body>
void for_each_state(Cpu cpu, const LinearAttentionShape& s, const Body& body) {
  constexpr int64_t grain = 8192;
  const int64_t size = s.state_size(), blocks = (size + grain - 1) / grain;
  parallel_for(cpu, s.heads() * blocks, [&](int64_t piece) {
    const int64_t begin = piece % blocks * grain;
    body(piece / blocks, begin, std::min(size, begin + grain));
  });
}

/// phi of one row, for elu1 and softmax.
template <class T>
void map_row(FeatureMap map, const T* x, int64_t f, T* out) {
  using Vec = simd::Vec<T>;
  if (map == FeatureMap::elu1) {
    for (int64_t d = 0; d < f; d += Vec::size) {
      const Vec v = Vec::load(x + d, f - d);
      select(v > T(0), v + T(1), exp(min(v, T(0)))).store(out + d, f - d);
    }
    return;
  }
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Vec top(lowest), total(T(0));
  for (int64_t d = 0; d < f; d += Vec::size) top = max(top, Vec::load(x + d, f - d, lowest));
  const T largest = reduce_max(top);
  for (int64_t d = 0; d < f; d += Vec::size) {
    const Vec e = exp(Vec::load(x + d, f - d, lowest) - largest);
    e.store(out + d, f - d);
    total += e;
  }
  const T scale = 1 / reduce_add(total);
  for (int64_t d = 0; d < f; d += Vec::size) (Vec::load(out + d, f - d) * scale).store(out + d, f - d);
}

/// Turns the gradient of a mapped row into that of the row: with y = phi(x), elu1 has dy/dx = min(y, 1), and softmax
/// dx = y (dy - y . dy).
template <class T>
void pull_back_row(FeatureMap map, const T* y, int64_t f, T* gradient) {
  using Vec = simd::Vec<T>;
  const T mean = map == FeatureMap::softmax ? dot(y, static_cast<const T*>(gradient), f) : T(0);
  for (int64_t d = 0; d < f; d += Vec::size) {
    const Vec value = Vec::load(y + d, f - d), dy = Vec::load(gradient + d, f - d);
    const Vec dx = map == FeatureMap::softmax ? value * (dy - mean) : min(value, T(1)) * dy;
    dx.store(gradient + d, f - d);
  }
}

/// `count` rows mapped into `memory`; the rows themselves where there is nothing to map.
template <class T>
Rows<const T> mapped(const LinearAttentionShape& s, const Rows<const T>& rows, int64_t count, T* memory) {
  if (!s.maps_rows()) return rows;
  for (int64_t i = 0; i < count; ++i) map_row(s.map, rows[i], s.f, memory + i * s.f);
  return {memory, s.f};
}

/// Multiplies `size` rows of lanes, lane by lane.
template <class T>
void scale_lanes(int64_t size, const T* factors, T* lanes) {
  using Vec = simd::Vec<T>;
  for (int64_t d = 0; d < size; ++d)
    for (int64_t i = 0; i < kQueries<T>; i += Vec::size)
      (Vec::load(lanes + d * kQueries<T> + i) * Vec::load(factors + i)).store(lanes + d * kQueries<T> + i);
}

// Features of taylor2. With y = q / sqrt(f) those of a query are 1, y_i, y_i y_j for i < j, and y_i^2 / 2; those of a
// key 1, k_i and k_i k_j for i <= j. Their products sum up to 1 + s + s^2 / 2, s = y . k.
enum class Side : uint8_t { query, key };

/// Feature rows [F, kQueries] of transposed rows x [f, kQueries], of queries already divided by sqrt(f).
template <class T>
void taylor_features(Side side, int64_t f, const T* x, T* out) {
  using Vec = simd::Vec<T>;
  constexpr int64_t lanes = kQueries<T>;
  const T square = side == Side::query ? T(0.5) : T(1);
  std::fill_n(out, lanes, T(1));
  std::copy_n(x, f * lanes, out + lanes);
  T* to = out + (1 + f) * lanes;
  for (int64_t i = 0; i < f; ++i)
    for (int64_t j = i; j < f; ++j, to += lanes)
      for (int64_t v = 0; v < lanes; v += Vec::size) {
        const Vec own = Vec::load(x + i * lanes + v);
        ((j == i ? own * square : own) * Vec::load(x + j * lanes + v)).store(to + v);
      }
}

/// The way back: dx [f, kQueries] from the gradient of the features [F, kQueries].
template <class T>
void pull_back_taylor(Side side, int64_t f, const T* x, const T* gradient, T* dx) {
  using Vec = simd::Vec<T>;
  constexpr int64_t lanes = kQueries<T>;
  const T square = side == Side::query ? T(1) : T(2);
  std::copy_n(gradient + lanes, f * lanes, dx);
  const T* from = gradient + (1 + f) * lanes;
  for (int64_t i = 0; i < f; ++i, from += (f - i + 1) * lanes)
    for (int64_t v = 0; v < lanes; v += Vec::size) {
      const Vec own = Vec::load(x + i * lanes + v);
      Vec sum = Vec::load(dx + i * lanes + v) + own * Vec::load(from + v) * square;
      for (int64_t j = i + 1; j < f; ++j) {
        const Vec g = Vec::load(from + (j - i) * lanes + v);
        sum += g * Vec::load(x + j * lanes + v);
        (Vec::load(dx + j * lanes + v) + g * own).store(dx + j * lanes + v);
      }
      sum.store(dx + i * lanes + v);
    }
}

/// What scores q . k are multiplied with.
template <class T>
T score_scale(const LinearAttentionShape& s) {
  return s.taylor() ? T(1 / std::sqrt(static_cast<double>(s.f))) : T(1);
}

/// `count` mapped rows of queries, times score_scale, transposed: [f, kQueries]. Lanes without a row hold anything.
template <class T>
void transpose_queries(const LinearAttentionShape& s, const Rows<const T>& rows, int64_t count, T* transposed) {
  pack_transposed(rows, count, s.f, transposed, kQueries<T>);
  if (!s.taylor()) return;
  for (int64_t i = 0; i < s.f * kQueries<T>; ++i) transposed[i] *= score_scale<T>(s);
}

/// The transposed features [F, kQueries] of transposed rows: made in `memory` for taylor2, else the rows themselves.
template <class T>
T* features(const LinearAttentionShape& s, Side side, T* transposed, T* memory) {
  if (!s.taylor()) return transposed;
  taylor_features(side, s.f, transposed, memory);
  return memory;
}

/// rows[i][d] = scale * transposed[d, i], or that added to it.
template <class T>
void unpack_transposed(const T* transposed, int64_t count, int64_t f, T scale, bool add, const Rows<T>& rows) {
  constexpr int64_t block = blas::kLanes<T>;
  const blas::Lanes<T> factor = blas::Lanes<T>{} + scale;
  alignas(64) T buffer[block * block];
  for (int64_t i = 0; i < count; i += block)
    for (int64_t d = 0; d < f; d += block) {
      const T* const from = transposed + d * kQueries<T> + i;
      const int64_t height = std::min(block, count - i), width = std::min(block, f - d);
      if (width == block) {
        blas::transpose_block(from, kQueries<T>, buffer, block);
      } else {
        for (int64_t r = 0; r < height; ++r)
          for (int64_t c = 0; c < width; ++c) buffer[r * block + c] = from[c * kQueries<T> + r];
      }
      for (int64_t r = 0; r < height; ++r) {
        T* const to = rows[i + r] + d;
        blas::Lanes<T> value = factor * blas::load(buffer + r * block);
        if (add) value += load_some(to, width);
        store_some(value, to, width);
      }
    }
}

/// S [F, columns] += features values, over `count` tokens; its last column, with a normaliser, += features weights.
/// Overwritten where it is the first of a state.
template <class T>
void add_to_state(const LinearAttentionShape& s, const T* features, const Rows<const T>& values, const T* weights,
                  int64_t count, bool first, T* state) {
  using Vec = simd::Vec<T>;
  const int64_t columns = s.state_columns();
  blas::gemm(false, false, s.features(), s.dv, count, T(1), features, kQueries<T>, values.data, values.stride,
             first ? T(0) : T(1), state, columns);
  if (!s.normalise) return;
  for (int64_t d = 0; d < s.features(); ++d) {
    Vec sum(T(0));
    for (int64_t i = 0; i < count; i += Vec::size)
      sum += Vec::load(features + d * kQueries<T> + i, count - i) * Vec::load(weights + i, count - i);
    T& last = state[d * columns + s.dv];
    last = (first ? T(0) : last) + reduce_add(sum);
  }
}

/// sums[i] += column . (features of token i), `column` being the last one of a state.
template <class T>
void add_last_column(const LinearAttentionShape& s, const T* state, const T* features, T* sums) {
  using Vec = simd::Vec<T>;
  for (int64_t v = 0; v < kQueries<T>; v += Vec::size) {
    Vec sum = Vec::load(sums + v);
    for (int64_t d = 0; d < s.features(); ++d)
      sum += Vec::load(features + d * kQueries<T> + v) * state[d * s.state_columns() + s.dv];
    sum.store(sums + v);
  }
}

}  // namespace margay::kernels::linear_attention
