#include "ops/cpu/linear_attention/features.h"

namespace margay::kernels {
namespace {

using namespace linear_attention;  // NOLINT: this file is the backward half of it

// With weights w = phi(q_t) . phi(k_s), c_t = 1 / (sum of w + eps) and delta_t = dy_t . y_t (c = 1 and delta = 0
// without a normaliser), y_t = c_t (sum of w v_s) has
//   dw = c_t (dy_t . v_s - delta_t),   dv_s = sum over t >= s of c_t w dy_t.
// Inside a chunk, dw goes to q and k through tiles of w, where taylor2 has w = 1 + x + x^2 / 2 and dx = dw (1 + x).
// With the state S = sum of phi(k) (v, 1)^T before a chunk and the gradient R of the state after it,
//   dphi(q_t) += c_t S (dy_t, -delta_t),   dphi(k_s) += R (v_s, 1),   dv_s += R^T phi(k_s),
// and the gradient of the state before the chunk is R + sum over its t of phi(q_t) c_t (dy_t, -delta_t)^T.
template <class T>
class Backward {
 public:
  explicit Backward(const LinearAttentionBwd<T>& a) : a_(a), s_(a.shape), tiles_(tile_shape(a.shape)) {}

  void run(Cpu cpu) const {
    for_each_unit(cpu, a_, [&](const Chunk& chunk, T* scratch) { summarise(chunk, scratch); });
    for_each_state(cpu, s_, [&](int64_t head, int64_t begin, int64_t end) { accumulate(head, begin, end); });
    for_each_unit(cpu, a_, [&](const Chunk& chunk, T* scratch) { pull_back(chunk, scratch); });
  }

 private:
  using Vec = simd::Vec<T>;
  static constexpr int64_t kTile = LinearAttentionShape::kTile;

  struct Scratch {
    T *keys, *queries;           // mapped rows
    T *transposed, *cotangents;  // queries (or keys) [f, kQueries], dy [dv, kQueries]
    T* drows;                    // [f, kQueries]
    T *features, *dfeatures;     // [F, kQueries]
    T *weights, *dweights;       // [kKeys, kQueries]
  };
  Scratch parts_of(T* memory) const {
    constexpr int64_t lanes = kQueries<T>;
    Scratch p{};
    p.keys = memory;
    p.queries = p.keys + s_.mapped_keys_size();
    p.transposed = p.queries + s_.f * lanes;
    p.cotangents = p.transposed + s_.f * lanes;
    p.drows = p.cotangents + s_.dv * lanes;
    p.features = p.drows + s_.f * lanes;
    p.dfeatures = p.features + s_.features() * lanes;
    p.weights = p.dfeatures + s_.features() * lanes;
    p.dweights = p.weights + kTile * lanes;
    return p;
  }
  template <class Element>
  Rows<Element> rows(Element* data, const HeadStrides& strides, const Chunk& chunk) const {
    return head_rows(data, strides, chunk.head / s_.H, chunk.head % s_.H).from(chunk.first);
  }

  const T* state_before(const Chunk& chunk) const {
    if (chunk.index == 0) return a_.initial ? a_.initial + chunk.head * s_.state_size() : nullptr;
    return a_.states + (chunk.head * (s_.chunks() - 1) + chunk.index - 1) * s_.state_size();
  }
  // Gradients of the states after and before chunk `index`; null where there is none.
  const T* gradient_after(int64_t head, int64_t index) const {
    if (index < s_.chunks() - 1) return gradient_before(head, index + 1);
    return a_.dfinal ? a_.dfinal + head * s_.state_size() : nullptr;
  }
  T* gradient_before(int64_t head, int64_t index) const {
    if (index > 0) return a_.dstates + (head * (s_.chunks() - 1) + index - 1) * s_.state_size();
    return a_.dinitial ? a_.dinitial + head * s_.state_size() : nullptr;
  }

  // c and -delta of a tile of queries.
  struct Normaliser {
    T inverse[kQueries<T>], minus_delta[kQueries<T>];
  };
  Normaliser normaliser(const Chunk& chunk, int64_t offset, int64_t count) const {
    Normaliser n{};
    const Rows<const T> y = rows(a_.y, a_.y_strides, chunk).from(offset);
    const Rows<const T> dy = rows(a_.dy, a_.dy_strides, chunk).from(offset);
    for (int64_t i = 0; i < count; ++i) {
      n.inverse[i] = s_.normalise ? a_.inverse[chunk.head * s_.T + chunk.first + offset + i] : T(1);
      n.minus_delta[i] = s_.normalise ? -dot(dy[i], y[i], s_.dv) : T(0);
    }
    return n;
  }

  // What this chunk alone adds to the gradient of the state before it.
  void summarise(const Chunk& chunk, T* memory) const {
    T* const gradient = gradient_before(chunk.head, chunk.index);
    if (!gradient) return;
    const Scratch scratch = parts_of(memory);
    const Rows<const T> q = rows(a_.q, a_.q_strides, chunk), dy = rows(a_.dy, a_.dy_strides, chunk);
    for (int64_t i = 0; i < chunk.end - chunk.first; i += kQueries<T>) {
      const int64_t count = std::min(kQueries<T>, chunk.end - chunk.first - i);
      const Normaliser n = normaliser(chunk, i, count);
      const Rows<const T> queries = mapped(s_, q.from(i), count, scratch.queries);
      transpose_queries(s_, queries, count, scratch.transposed);
      T* const phi = features(s_, Side::query, scratch.transposed, scratch.features);
      if (s_.normalise) scale_lanes(s_.features(), n.inverse, phi);
      add_to_state(s_, phi, dy.from(i), n.minus_delta, count, i == 0, gradient);
    }
  }

  void accumulate(int64_t head, int64_t begin, int64_t end) const {
    for (int64_t index = s_.chunks() - 1; index >= 0; --index) {
      T* const gradient = gradient_before(head, index);
      const T* const next = gradient_after(head, index);
      if (gradient && next)
        for (int64_t i = begin; i < end; ++i) gradient[i] += next[i];
    }
    if (s_.chunks() > 0 || !a_.dinitial) return;
    for (int64_t i = begin; i < end; ++i)
      a_.dinitial[head * s_.state_size() + i] = a_.dfinal ? a_.dfinal[head * s_.state_size() + i] : T(0);
  }

  void pull_back(const Chunk& chunk, T* memory) const {
    const Scratch scratch = parts_of(memory);
    const int64_t length = chunk.end - chunk.first;
    const Rows<const T> keys = mapped(s_, rows(a_.k, a_.k_strides, chunk), length, scratch.keys);
    for (int64_t i = 0; i < length; i += kQueries<T>)
      pull_back_keys(chunk, i, keys.from(i), std::min(kQueries<T>, length - i), scratch);
    for (int64_t first = chunk.first; first < chunk.end; first += kQueries<T>)
      pull_back_queries(chunk, QueryTile<T>(tiles_, first / kQueries<T>), keys, scratch);
    if (!s_.maps_rows()) return;
    const Rows<T> dk = rows(a_.dk, a_.dk_strides, chunk);
    for (int64_t j = 0; j < length; ++j) pull_back_row(s_.map, keys[j], s_.f, dk[j]);
  }

  // What dk and dv of a tile of keys get from the chunks behind; zeros if there are none.
  void pull_back_keys(const Chunk& chunk, int64_t offset, const Rows<const T>& keys, int64_t count,
                      const Scratch& scratch) const {
    const Rows<T> dk = rows(a_.dk, a_.dk_strides, chunk).from(offset);
    const Rows<T> dv = rows(a_.dv, a_.dv_strides, chunk).from(offset);
    const T* const gradient = gradient_after(chunk.head, chunk.index);
    if (!gradient) {
      for (int64_t j = 0; j < count; ++j) {
        std::fill_n(dk[j], s_.f, T(0));
        std::fill_n(dv[j], s_.dv, T(0));
      }
      return;
    }
    const int64_t columns = s_.state_columns(), size = s_.features();
    const Rows<const T> v = rows(a_.v, a_.v_strides, chunk).from(offset);
    pack_transposed(keys, count, s_.f, scratch.transposed, kQueries<T>);
    const T* const phi = features(s_, Side::key, scratch.transposed, scratch.features);
    blas::gemm(true, false, count, s_.dv, size, T(1), phi, kQueries<T>, gradient, columns, T(0), dv.data, dv.stride);
    blas::gemm(false, true, size, count, s_.dv, T(1), gradient, columns, v.data, v.stride, T(0), scratch.dfeatures,
               kQueries<T>);
    if (s_.normalise)
      for (int64_t d = 0; d < size; ++d)
        for (int64_t j = 0; j < count; ++j) scratch.dfeatures[d * kQueries<T> + j] += gradient[d * columns + s_.dv];
    unpack_transposed(drows(Side::key, scratch), count, s_.f, T(1), false, dk);
  }

  // The gradient of transposed rows from that of their features.
  const T* drows(Side side, const Scratch& scratch) const {
    if (!s_.taylor()) return scratch.dfeatures;
    pull_back_taylor(side, s_.f, scratch.transposed, scratch.dfeatures, scratch.drows);
    return scratch.drows;
  }

  // dq of a tile of queries, and what it adds to dk and dv of the chunk; `keys` begin at the chunk's first token.
  void pull_back_queries(const Chunk& chunk, const QueryTile<T>& queries, const Rows<const T>& keys,
                         const Scratch& scratch) const {
    const int64_t offset = queries.first - chunk.first, count = queries.count;
    const Normaliser n = normaliser(chunk, offset, count);
    const Rows<const T> q = mapped(s_, rows(a_.q, a_.q_strides, chunk).from(offset), count, scratch.queries);
    const Rows<const T> dy = rows(a_.dy, a_.dy_strides, chunk).from(offset), v = rows(a_.v, a_.v_strides, chunk);
    const Rows<T> dq = rows(a_.dq, a_.dq_strides, chunk).from(offset);
    const Rows<T> dk = rows(a_.dk, a_.dk_strides, chunk), dv = rows(a_.dv, a_.dv_strides, chunk);
    transpose_queries(s_, q, count, scratch.transposed);
    pack_transposed(dy, count, s_.dv, scratch.cotangents, kQueries<T>);
    const auto from_start = [&](const Rows<const T>& x) {
      return Rows<const T>{x.data - chunk.first * x.stride, x.stride};
    };
    for (int64_t first = chunk.first; first < queries.keys_end; first += kKeys<T>) {
      const KeyTile<T> tile(tiles_, queries, first, queries.keys_end);
      const int64_t at = first - chunk.first;
      attention::scores(tile, from_start(keys), scratch.transposed, s_.f, scratch.weights);
      attention::scores(tile, from_start(v), scratch.cotangents, s_.dv, scratch.dweights);
      if (s_.taylor() || s_.normalise) differentiate(tile, n, scratch);
      attention::gather_from_queries(tile, scratch.weights, dy, s_.dv, dv.from(at), true);
      attention::gather_from_queries(tile, scratch.dweights, q, s_.f, dk.from(at), true);
      attention::gather_from_keys(tile, scratch.dweights, keys.from(at), s_.f, dq, at > 0);
    }
    if (const T* const state = state_before(chunk)) pull_back_from_state(n, dy, count, state, scratch, dq);
    if (s_.maps_rows())
      for (int64_t i = 0; i < count; ++i) pull_back_row(s_.map, q[i], s_.f, dq[i]);
  }

  // dq += what comes through the state before the chunk.
  void pull_back_from_state(const Normaliser& n, const Rows<const T>& dy, int64_t count, const T* state,
                            const Scratch& scratch, const Rows<T>& dq) const {
    const int64_t columns = s_.state_columns(), size = s_.features();
    blas::gemm(false, true, size, count, s_.dv, T(1), state, columns, dy.data, dy.stride, T(0), scratch.dfeatures,
               kQueries<T>);
    if (s_.normalise) {
      for (int64_t d = 0; d < size; ++d)
        for (int64_t v = 0; v < count; v += Vec::size) {
          T* const at = scratch.dfeatures + d * kQueries<T> + v;
          const Vec sum = Vec::load(at) + Vec::load(n.minus_delta + v) * state[d * columns + s_.dv];
          (sum * Vec::load(n.inverse + v)).store(at);
        }
    }
    unpack_transposed(drows(Side::query, scratch), count, s_.f, score_scale<T>(s_), true, dq);
  }

  // Scores become c w, and products dy . v gradients of the scores q . k.
  void differentiate(const KeyTile<T>& tile, const Normaliser& n, const Scratch& scratch) const {
    const bool taylor = s_.taylor();
    const T scale = score_scale<T>(s_);
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t lane = v * Vec::size;
      const auto range = tile.range(v);
      const Vec inverse = Vec::load(n.inverse + lane), minus_delta = Vec::load(n.minus_delta + lane);
      for (int64_t j = range.begin; j < range.end; ++j) {
        const int64_t at = j * kQueries<T> + lane;
        const Vec x = Vec::load(scratch.weights + at);
        Vec dweight = (Vec::load(scratch.dweights + at) + minus_delta) * inverse;
        Vec weight = x;
        if (taylor) {
          weight = T(1) + x * (T(1) + T(0.5) * x);
          dweight *= (T(1) + x) * scale;
        }
        (weight * inverse).store(scratch.weights + at);
        dweight.store(scratch.dweights + at);
      }
    }
  }

  const LinearAttentionBwd<T>& a_;
  const LinearAttentionShape& s_;
  AttentionShape tiles_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const LinearAttentionBwd<T>& a) {
  if (a.shape.work() < LinearAttentionShape::kSerialWork) cpu.threads = 1;
  Backward<T>(a).run(cpu);
}

template void run(Cpu, const LinearAttentionBwd<float>&);
template void run(Cpu, const LinearAttentionBwd<double>&);

}  // namespace margay::kernels
