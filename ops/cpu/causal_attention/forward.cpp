#include <optional>

#include "engine/parallel.h"
#include "ops/cpu/causal_attention/running_softmax.h"
#include "ops/cpu/causal_attention/tile.h"

namespace margay::kernels {
namespace {

using namespace attention;  // NOLINT: this file is the forward half of it

/// Where a tile of queries stands in the work: batch, head and index of the tile, part of its keys.
struct Unit {
  int64_t batch, head, tile, part;
};

template <class T>
class Forward {
 public:
  explicit Forward(const CausalAttentionFwd<T>& a) : a_(a), s_(a.shape), parts_(a.parts()) {}

  void run(Cpu cpu) const {
    const int64_t units = a_.units(), pieces = Args::Tiling::pieces(units);
    parallel_for(cpu, pieces, [&](int64_t piece) {
      T* const scratch = a_.workspace + piece * a_.scratch_size();
      for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit) attend(unit, scratch);
    });
    if (parts_ > 1) parallel_for(cpu, units / parts_, [&](int64_t tile) { combine(tile); });
  }

 private:
  using Args = CausalAttentionFwd<T>;
  using Vec = simd::Vec<T>;

  Unit place(int64_t unit) const {
    const int64_t tiles = Args::Tiling::tiles(s_), row = unit / parts_;
    // The last tiles see the most keys, so they come first.
    return {row / tiles / s_.H, row / tiles % s_.H, tiles - 1 - row % tiles, unit % parts_};
  }

  // A tile of queries, the keys begin ... end - 1 it is to see, and where the result belongs.
  struct Task {
    Unit at;
    QueryTile<T> queries;
    Rows<const T> q, k, v;
    int64_t begin, end;
    Rows<T> y;
    T scale;
    T *transposed, *weights;
    std::optional<DropoutFactors<T>> dropout;
  };

  // One tile of queries against all its keys, or one part of them.
  void attend(int64_t unit, T* scratch) const {
    const Unit at = place(unit);
    const QueryTile<T> queries(s_, at.tile);
    const int64_t keys = queries.keys_end - queries.keys_begin;
    Task task{.at = at,
              .queries = queries,
              .q = head_rows(a_.q, a_.q_strides, at.batch, at.head).from(queries.first),
              .k = head_rows(a_.k, a_.k_strides, at.batch, at.head),
              .v = head_rows(a_.v, a_.v_strides, at.batch, at.head),
              .begin = queries.keys_begin + at.part * keys / parts_,
              .end = queries.keys_begin + (at.part + 1) * keys / parts_,
              .y = parts_ > 1 ? Rows<T>{partial(unit), s_.dh} : results(at, queries),
              .scale = a_.beta ? a_.beta[at.head] : T(a_.scale),
              .transposed = scratch,
              .weights = scratch + s_.dh * kQueries<T>,
              .dropout = {}};
    if (a_.dropout.rate > 0) task.dropout.emplace(s_, a_.dropout, task.weights + Args::Tiling::kTile);
    RunningSoftmax<T> softmax;
    if (queries.count == 1) {
      attend_alone(task, softmax);
    } else {
      attend_together(task, softmax);
    }
    if (parts_ > 1) {
      std::copy_n(softmax.maximum, kQueries<T>, maximum(unit));
      std::copy_n(softmax.sum, kQueries<T>, sum(unit));
    } else {
      store_lse(at, queries, softmax.maximum, softmax.sum);
    }
  }

  void attend_together(const Task& task, RunningSoftmax<T>& softmax) const {
    const QueryTile<T>& queries = task.queries;
    T inverse[kQueries<T>];
    pack_transposed(task.q, queries.count, s_.dh, task.transposed, kQueries<T>);
    for (int64_t first = task.begin; first < task.end; first += kKeys<T>) {
      const KeyTile<T> tile(s_, queries, first, task.end);
      scores(tile, task.k, task.transposed, s_.dh, task.weights);
      softmax.absorb(tile, task.scale, task.weights);
      if (task.dropout)
        thin(tile, task.dropout->make(task.at.batch * s_.H + task.at.head, queries, tile), task.weights);
      const bool finish = parts_ == 1 && first + kKeys<T> >= task.end;
      if (finish)
        for (int64_t i = 0; i < queries.count; ++i) inverse[i] = 1 / softmax.sum[i];
      gather_from_keys(tile, task.weights, task.v.from(first), s_.dh, task.y, first > task.begin, softmax.rescale,
                       finish ? inverse : nullptr);
    }
  }

  // A single query (decoding): a lane per key, and nothing is masked.
  void attend_alone(const Task& task, RunningSoftmax<T>& softmax) const {
    constexpr T lowest = RunningSoftmax<T>::kLowest;
    T* const weights = task.weights;
    for (int64_t first = task.begin; first < task.end; first += kKeys<T>) {
      const KeyTile<T> tile(s_, task.queries, first, task.end);
      for (int64_t j = 0; j < tile.count; ++j) weights[j] = dot(task.q.data, task.k[first + j], s_.dh) * task.scale;
      Vec top(softmax.maximum[0]), total(T(0));
      for (int64_t j = 0; j < tile.count; j += Vec::size)
        top = max(top, Vec::load(weights + j, tile.count - j, lowest));
      const T highest = reduce_max(top), rescale = exp(Vec(softmax.maximum[0] - highest)).v[0];
      for (int64_t j = 0; j < tile.count; j += Vec::size) {
        const Vec weight = exp(Vec::load(weights + j, tile.count - j, lowest) - highest);
        total += weight;
        weight.store(weights + j);
      }
      softmax.maximum[0] = highest;
      softmax.sum[0] = softmax.sum[0] * rescale + reduce_add(total);
      if (task.dropout) {
        const T* const factors = task.dropout->make(task.at.batch * s_.H + task.at.head, task.queries, tile);
        for (int64_t j = 0; j < tile.count; ++j) weights[j] *= factors[j * kQueries<T>];
      }
      const T inverse = 1 / softmax.sum[0];
      band_product<Layout::rows>(
          BandProduct<T>{.a = weights,
                         .a_row = 0,
                         .b = task.v[first],
                         .b_row = task.v.stride,
                         .c = task.y.data,
                         .c_row = 0,
                         .rows = 1,
                         .columns = s_.dh,
                         .depth = tile.count,
                         .band = tile.sees,
                         .add = first > task.begin,
                         .before = &rescale,
                         .after = parts_ == 1 && first + kKeys<T> >= task.end ? &inverse : nullptr});
    }
  }

  // Joins the parts of a tile, in their order.
  void combine(int64_t row) const {
    const int64_t first_unit = row * parts_;
    const Unit at = place(first_unit);
    const QueryTile<T> queries(s_, at.tile);
    const Rows<T> y = results(at, queries);
    T top[kQueries<T>], total[kQueries<T>];
    for (int64_t i = 0; i < queries.count; ++i) {
      top[i] = RunningSoftmax<T>::kLowest;
      total[i] = 0;
      for (int64_t part = 0; part < parts_; ++part) top[i] = std::max(top[i], maximum(first_unit + part)[i]);
      std::fill_n(y[i], s_.dh, T(0));
      for (int64_t part = 0; part < parts_; ++part) {
        const T weight = std::exp(maximum(first_unit + part)[i] - top[i]);
        const T* const source = partial(first_unit + part) + i * s_.dh;
        total[i] += weight * sum(first_unit + part)[i];
        for (int64_t d = 0; d < s_.dh; ++d) y[i][d] += weight * source[d];
      }
      for (int64_t d = 0; d < s_.dh; ++d) y[i][d] /= total[i];
    }
    store_lse(at, queries, top, total);
  }

  void store_lse(const Unit& at, const QueryTile<T>& queries, const T* maximum, const T* sum) const {
    if (!a_.lse) return;
    T* const lse = a_.lse + (at.batch * s_.H + at.head) * s_.Lq + queries.first;
    for (int64_t i = 0; i < queries.count; i += Vec::size) {
      const int64_t n = queries.count - i;
      (Vec::load(maximum + i, n) + log(Vec::load(sum + i, n, T(1)))).store(lse + i, n);
    }
  }

  Rows<T> results(const Unit& at, const QueryTile<T>& queries) const {
    return head_rows(a_.y, a_.y_strides, at.batch, at.head).from(queries.first);
  }
  T* partial(int64_t unit) const { return a_.workspace + a_.partials_begin() + unit * a_.partial_size(); }
  T* maximum(int64_t unit) const { return partial(unit) + s_.dh * kQueries<T>; }
  T* sum(int64_t unit) const { return maximum(unit) + kQueries<T>; }

  const Args& a_;
  const AttentionShape& s_;
  int64_t parts_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const CausalAttentionFwd<T>& a) {
  if (a.shape.work() < AttentionTiling<T>::kSerialWork) cpu.threads = 1;
  if (a.shape.dh > 0) Forward<T>(a).run(cpu);
}

template void run(Cpu, const CausalAttentionFwd<float>&);
template void run(Cpu, const CausalAttentionFwd<double>&);

}  // namespace margay::kernels
