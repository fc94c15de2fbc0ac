#include "ops/selected_attention.h"

#include <optional>

#include "engine/parallel.h"
#include "ops/cpu/causal_attention/running_softmax.h"
#include "ops/cpu/causal_attention/tile.h"

// As causal attention (ops/cpu/causal_attention, where the formulas are), with queries that stand anywhere: those of a
// tile are copied side by side, and each has its own limits among the keys.

namespace margay::kernels {
namespace {

using attention::DropoutFactors;
using attention::KeyRange;
using attention::kKeys;
using attention::kQueries;
using attention::RunningSoftmax;
using attention::scale_row;
using attention::thin;

/// Some queries of one head.
template <class T>
struct SelectedQueries {
  const int32_t* places;  // in the list of rows
  int64_t count;
  int64_t position[kQueries<T>];
  int64_t keys_begin, keys_end;  // what at least one of them sees

  SelectedQueries(const SelectedAttentionCall<T>& a, int64_t batch, const int32_t* places, int64_t count)
      : places(places), count(count), keys_begin(a.shape.Lk), keys_end(0) {
    for (int64_t i = 0; i < count; ++i) {
      position[i] = a.rows[places[i]] - batch * a.shape.Lk;
      keys_begin = std::min(keys_begin, std::max<int64_t>(0, position[i] - a.shape.reach));
      keys_end = std::max(keys_end, position[i] + 1);
    }
  }
};

/// The tile of `queries` against the keys first ... first + count - 1.
template <class T>
struct SelectedTile {
  using Vec = simd::Vec<T>;
  int64_t first, count, queries, vectors;
  T begin[kQueries<T>], end[kQueries<T>];  // keys of the tile that a query sees; idle lanes see what query 0 does
  bool whole = true;                       // whether every query sees every key

  SelectedTile(const AttentionShape& s, const SelectedQueries<T>& queries, int64_t first)
      : first(first),
        count(std::min(kKeys<T>, queries.keys_end - first)),
        queries(queries.count),
        vectors((queries.count + Vec::size - 1) / Vec::size) {
    for (int64_t i = 0; i < vectors * Vec::size; ++i) {
      const int64_t position = queries.position[i < queries.count ? i : 0] - first;
      begin[i] = T(std::clamp<int64_t>(position - s.reach, 0, count));
      end[i] = T(std::clamp<int64_t>(position + 1, 0, count));
      whole = whole && begin[i] == 0 && end[i] == T(count);
    }
  }
  KeyRange range(int64_t v) const {
    const auto of = [&](const T* limits) {
      return std::minmax_element(limits + v * Vec::size, limits + (v + 1) * Vec::size);
    };
    const auto [first_begin, last_begin] = of(begin);
    const auto [first_end, last_end] = of(end);
    KeyRange r{int64_t(*first_begin), int64_t(*last_begin), int64_t(*first_end), int64_t(*last_end)};
    r.end = std::max(r.end, r.begin);
    if (r.full_begin > r.full_end) r.full_begin = r.full_end = r.end;
    return r;
  }
  simd::Mask<T> mask(int64_t v, int64_t j) const {
    const Vec key = Vec(T(j));
    return (key >= Vec::load(begin + v * Vec::size)) & (key < Vec::load(end + v * Vec::size));
  }
};

/// out[j, i] = keys[j] . queries[i].
template <class T>
void scores(const SelectedTile<T>& tile, const Rows<const T>& keys, const T* transposed_queries, int64_t dh, T* out) {
  band_product<Layout::rows>(BandProduct<T>{.a = keys[tile.first],
                                            .a_row = keys.stride,
                                            .b = transposed_queries,
                                            .b_row = kQueries<T>,
                                            .c = out,
                                            .c_row = kQueries<T>,
                                            .rows = tile.count,
                                            .columns = tile.vectors * simd::Vec<T>::size,
                                            .depth = dh,
                                            .band = kWholeBand});
}

/// to[i] = before[i] * to[i] + sum over the keys j that query i sees of weights[j, i] from[j]; before null: ones.
template <class T>
void gather_from_keys(const SelectedTile<T>& tile, const T* weights, const Rows<const T>& from, int64_t dh,
                      const Rows<T>& to, const T* before) {
  const auto gather = [&](int64_t i, int64_t rows, int64_t begin, int64_t end) {
    band_product<Layout::columns>(BandProduct<T>{.a = weights + begin * kQueries<T> + i,
                                                 .a_row = kQueries<T>,
                                                 .b = from[tile.first + begin],
                                                 .b_row = from.stride,
                                                 .c = to[i],
                                                 .c_row = to.stride,
                                                 .rows = rows,
                                                 .columns = dh,
                                                 .depth = end - begin,
                                                 .band = kWholeBand,
                                                 .add = true,
                                                 .before = before ? before + i : nullptr});
  };
  if (tile.whole) return gather(0, tile.queries, 0, tile.count);
  for (int64_t i = 0; i < tile.queries; ++i)
    if (tile.begin[i] < tile.end[i]) gather(i, 1, int64_t(tile.begin[i]), int64_t(tile.end[i]));
}

/// to[j] += sum over the queries i of weights[j, i] from[i].
template <class T>
void gather_from_queries(const SelectedTile<T>& tile, const T* weights, const T* from, int64_t dh, const Rows<T>& to) {
  band_product<Layout::rows>(BandProduct<T>{.a = weights,
                                            .a_row = kQueries<T>,
                                            .b = from,
                                            .b_row = dh,
                                            .c = to[tile.first],
                                            .c_row = to.stride,
                                            .rows = tile.count,
                                            .columns = dh,
                                            .depth = tile.queries,
                                            .band = kWholeBand,
                                            .add = true});
}

// Fills a.lists.
template <class T>
void list_by_batch(const SelectedAttentionCall<T>& a) {
  const int64_t B = a.shape.B;
  int32_t *const start = a.lists, *const list = a.lists + B + 1;
  std::fill_n(start, B + 1, 0);
  for (int64_t r = 0; r < a.R; ++r)
    if (a.rows[r] >= 0) ++start[a.rows[r] / a.shape.Lk + 1];
  for (int64_t b = 0; b < B; ++b) start[b + 1] += start[b];
  for (int64_t r = 0; r < a.R; ++r)
    if (a.rows[r] >= 0) list[start[a.rows[r] / a.shape.Lk]++] = static_cast<int32_t>(r);
  for (int64_t b = B; b > 0; --b) start[b] = start[b - 1];
  start[0] = 0;
}

// What both passes share: a unit of work is a head of a batch, whose queries come in tiles.
template <class Args, class T>
class Selected {
 public:
  explicit Selected(const Args& a) : a_(a), s_(a.shape) {}

 protected:
  static constexpr int64_t kTile = AttentionTiling<T>::kTile;

  // Calls body(unit, scratch memory of its piece) for all heads of all batches.
  template <class Body>
  void for_units(Cpu cpu, const Body& body) const {
    const int64_t units = a_.units(), pieces = a_.pieces();
    parallel_for(cpu, pieces, [&](int64_t piece) {
      for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit)
        body(unit, a_.workspace + piece * a_.scratch_size());
    });
  }
  template <class Body>
  void for_tiles(int64_t batch, const Body& body) const {
    const int32_t *const start = a_.lists, *const list = a_.lists + s_.B + 1;
    for (int64_t i = start[batch]; i < start[batch + 1]; i += kQueries<T>)
      body(SelectedQueries<T>(a_, batch, list + i, std::min<int64_t>(kQueries<T>, start[batch + 1] - i)));
  }
  T scale(int64_t head) const { return a_.beta ? a_.beta[head] : T(a_.scale); }
  // Rows of [R,H,dh] of a head.
  template <class U>
  Rows<U> selected_rows(U* data, int64_t head) const {
    return {data + head * s_.dh, s_.H * s_.dh};
  }
  const T* factors(const std::optional<DropoutFactors<T>>& dropout, int64_t unit, const SelectedQueries<T>& queries,
                   const SelectedTile<T>& tile) const {
    const auto query = [&](int64_t i) { return queries.position[i]; };
    return dropout ? dropout->make(unit, queries.count, query, tile.first, tile.count) : nullptr;
  }

  const Args& a_;
  const AttentionShape& s_;
};

template <class T>
class Forward : Selected<SelectedAttentionFwd<T>, T> {
 public:
  using Selected<SelectedAttentionFwd<T>, T>::Selected;

  void run(Cpu cpu) const {
    for (int64_t r = 0; r < a_.R; ++r)
      if (a_.rows[r] < 0) std::fill_n(a_.y + r * s_.H * s_.dh, s_.H * s_.dh, T(0));
    this->for_units(cpu, [&](int64_t unit, T* scratch) {
      this->for_tiles(unit / s_.H, [&](const SelectedQueries<T>& queries) { attend(unit, queries, scratch); });
    });
  }

 private:
  using Selected<SelectedAttentionFwd<T>, T>::a_, Selected<SelectedAttentionFwd<T>, T>::s_;
  using Vec = simd::Vec<T>;

  void attend(int64_t unit, const SelectedQueries<T>& queries, T* scratch) const {
    const int64_t batch = unit / s_.H, head = unit % s_.H;
    const Rows<const T> q = head_rows(a_.q, a_.q_strides, batch, head), k = head_rows(a_.k, a_.k_strides, batch, head),
                        v = head_rows(a_.v, a_.v_strides, batch, head);
    const Rows<T> y = this->selected_rows(a_.y, head), rows{scratch, s_.dh};
    T *const transposed = scratch + kQueries<T> * s_.dh, *const weights = transposed + kQueries<T> * s_.dh;
    std::optional<DropoutFactors<T>> dropout;
    if (a_.dropout.rate > 0) dropout.emplace(s_, a_.dropout, weights + this->kTile);
    for (int64_t i = 0; i < queries.count; ++i) std::copy_n(q[queries.position[i]], s_.dh, rows[i]);
    pack_transposed<T>({rows.data, s_.dh}, queries.count, s_.dh, transposed, kQueries<T>);
    std::fill_n(rows.data, queries.count * s_.dh, T(0));  // from here on, the results
    RunningSoftmax<T> softmax;
    for (int64_t first = queries.keys_begin; first < queries.keys_end; first += kKeys<T>) {
      const SelectedTile<T> tile(s_, queries, first);
      scores(tile, k, transposed, s_.dh, weights);
      softmax.absorb(tile, this->scale(head), weights);
      if (const T* const factors = this->factors(dropout, unit, queries, tile)) thin(tile, factors, weights);
      gather_from_keys(tile, weights, v, s_.dh, rows, softmax.rescale);
    }
    for (int64_t i = 0; i < queries.count; ++i) {
      scale_row(rows[i], 1 / softmax.sum[i], s_.dh);
      std::copy_n(rows[i], s_.dh, y[queries.places[i]]);
      if (a_.lse) a_.lse[queries.places[i] * s_.H + head] = softmax.maximum[i] + std::log(softmax.sum[i]);
    }
  }
};

template <class T>
class Backward : Selected<SelectedAttentionBwd<T>, T> {
 public:
  using Selected<SelectedAttentionBwd<T>, T>::Selected;

  void run(Cpu cpu) const {
    this->for_units(cpu, [&](int64_t unit, T* scratch) { pull_back(unit, scratch); });
    if (!a_.dbeta) return;
    for (int64_t head = 0; head < s_.H; ++head) {
      T sum = 0;
      for (int64_t batch = 0; batch < s_.B; ++batch) sum += dscale(batch * s_.H + head);
      a_.dbeta[head] = sum;
    }
  }

 private:
  using Selected<SelectedAttentionBwd<T>, T>::a_, Selected<SelectedAttentionBwd<T>, T>::s_;
  using Vec = simd::Vec<T>;

  struct Scratch {
    T *q, *dy, *dq;           // [kQueries, dh]
    T *queries, *cotangents;  // transposed: [dh, kQueries]
    T *weights, *dscores;     // [kKeys, kQueries]
    std::optional<DropoutFactors<T>> dropout;
  };

  // All of a head.
  void pull_back(int64_t unit, T* memory) const {
    const int64_t batch = unit / s_.H, head = unit % s_.H, size = kQueries<T> * s_.dh;
    T* const weights = memory + 5 * size;
    Scratch scratch{
        memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size, weights, weights + this->kTile,
        {}};
    if (a_.dropout.rate > 0) scratch.dropout.emplace(s_, a_.dropout, weights + 2 * this->kTile);
    const Rows<T> dq = head_rows(a_.dq, a_.dq_strides, batch, head), dk = head_rows(a_.dk, a_.dk_strides, batch, head),
                  dv = head_rows(a_.dv, a_.dv_strides, batch, head);
    for (int64_t j = 0; j < s_.Lk; ++j)
      for (T* const row : {dq[j], dk[j], dv[j]}) std::fill_n(row, s_.dh, T(0));
    T sum = 0;
    this->for_tiles(batch, [&](const SelectedQueries<T>& queries) {
      pull_back(unit, queries, scratch, dk, dv);
      for (int64_t i = 0; i < queries.count; ++i) {
        T *const from = scratch.dq + i * s_.dh, *const to = dq[queries.position[i]];
        if (a_.dbeta) sum += dot<T>(from, scratch.q + i * s_.dh, s_.dh);
        for (int64_t d = 0; d < s_.dh; d += Vec::size) {
          const int64_t n = s_.dh - d;
          (Vec::load(to + d, n) + Vec::load(from + d, n) * this->scale(head)).store(to + d, n);
        }
      }
    });
    for (int64_t j = 0; j < s_.Lk; ++j) scale_row(dk[j], this->scale(head), s_.dh);
    dscale(unit) = sum;
  }

  // dq / scale of a tile of queries, and what it adds to dk / scale and dv.
  void pull_back(int64_t unit, const SelectedQueries<T>& queries, const Scratch& scratch, const Rows<T>& dk,
                 const Rows<T>& dv) const {
    const int64_t batch = unit / s_.H, head = unit % s_.H;
    const Rows<const T> q = head_rows(a_.q, a_.q_strides, batch, head), k = head_rows(a_.k, a_.k_strides, batch, head),
                        v = head_rows(a_.v, a_.v_strides, batch, head), y = this->selected_rows(a_.y, head),
                        dy = this->selected_rows(a_.dy, head);
    T delta[kQueries<T>] = {}, lse[kQueries<T>] = {};
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t place = queries.places[i];
      std::copy_n(q[queries.position[i]], s_.dh, scratch.q + i * s_.dh);
      std::copy_n(dy[place], s_.dh, scratch.dy + i * s_.dh);
      delta[i] = dot(dy[place], y[place], s_.dh);
      lse[i] = a_.lse[place * s_.H + head];
    }
    std::fill_n(scratch.dq, queries.count * s_.dh, T(0));
    pack_transposed<T>({scratch.q, s_.dh}, queries.count, s_.dh, scratch.queries, kQueries<T>);
    pack_transposed<T>({scratch.dy, s_.dh}, queries.count, s_.dh, scratch.cotangents, kQueries<T>);
    for (int64_t first = queries.keys_begin; first < queries.keys_end; first += kKeys<T>) {
      const SelectedTile<T> tile(s_, queries, first);
      scores(tile, k, scratch.queries, s_.dh, scratch.weights);
      scores(tile, v, scratch.cotangents, s_.dh, scratch.dscores);
      differentiate(tile, this->scale(head), lse, delta, this->factors(scratch.dropout, unit, queries, tile), scratch);
      gather_from_queries(tile, scratch.weights, scratch.dy, s_.dh, dv);
      gather_from_queries(tile, scratch.dscores, scratch.q, s_.dh, dk);
      gather_from_keys<T>(tile, scratch.dscores, k, s_.dh, {scratch.dq, s_.dh}, nullptr);
    }
  }

  // Scores become weights, and gradients of the weights become gradients of the scores: 0 where a key is not seen.
  static void differentiate(const SelectedTile<T>& tile, T scale, const T* lse, const T* delta, const T* factors,
                            const Scratch& scratch) {
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t lane = v * Vec::size;
      const Vec shift = Vec::load(lse + lane), mean = Vec::load(delta + lane);
      for (int64_t j = 0; j < tile.count; ++j) {
        const int64_t at = j * kQueries<T> + lane;
        const auto seen = tile.mask(v, j);
        Vec weight = exp(Vec::load(scratch.weights + at) * scale - shift), dweight = Vec::load(scratch.dscores + at);
        if (factors) dweight *= Vec::load(factors + at);
        select(seen, weight * (dweight - mean), T(0)).store(scratch.dscores + at);
        if (factors) weight *= Vec::load(factors + at);
        select(seen, weight, T(0)).store(scratch.weights + at);
      }
    }
  }

  T& dscale(int64_t unit) const { return a_.workspace[a_.dbeta_begin() + unit]; }
};

template <class Pass, class Args>
void run_on(Cpu cpu, const Args& a) {
  if (a.work() < Args::Tiling::kSerialWork) cpu.threads = 1;
  list_by_batch(a);
  Pass(a).run(cpu);
}

}  // namespace

template <class T>
void run(Cpu cpu, const SelectedAttentionFwd<T>& a) {
  run_on<Forward<T>>(cpu, a);
}
template <class T>
void run(Cpu cpu, const SelectedAttentionBwd<T>& a) {
  run_on<Backward<T>>(cpu, a);
}

template void run(Cpu, const SelectedAttentionFwd<float>&);
template void run(Cpu, const SelectedAttentionFwd<double>&);
template void run(Cpu, const SelectedAttentionBwd<float>&);
template void run(Cpu, const SelectedAttentionBwd<double>&);

}  // namespace margay::kernels
