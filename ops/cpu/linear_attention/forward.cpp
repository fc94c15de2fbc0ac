#include "ops/cpu/linear_attention/features.h"

namespace margay::kernels {
namespace {

using namespace linear_attention;  // NOLINT: this file is the forward half of it

// Three passes over heads and chunks: what each chunk adds to the state, the states themselves, and the results.
template <class T>
class Forward {
 public:
  explicit Forward(const LinearAttentionFwd<T>& a) : a_(a), s_(a.shape), tiles_(tile_shape(a.shape)) {}

  void run(Cpu cpu) const {
    for_each_unit(cpu, a_, [&](const Chunk& chunk, T* scratch) { summarise(chunk, scratch); });
    for_each_state(cpu, s_, [&](int64_t head, int64_t begin, int64_t end) { accumulate(head, begin, end); });
    for_each_unit(cpu, a_, [&](const Chunk& chunk, T* scratch) { attend(chunk, scratch); });
  }

 private:
  using Vec = simd::Vec<T>;

  struct Scratch {
    T *keys, *queries;  // mapped rows
    T* transposed;      // queries [f, kQueries]
    T* features;        // [F, kQueries]
    T* weights;         // [kKeys, kQueries]
  };
  Scratch parts_of(T* memory) const {
    T* const queries = memory + s_.mapped_keys_size();
    T* const transposed = queries + s_.f * kQueries<T>;
    T* const features = transposed + s_.f * kQueries<T>;
    return {memory, queries, transposed, features, features + s_.features() * kQueries<T>};
  }
  Rows<const T> rows(const T* data, const HeadStrides& strides, const Chunk& chunk) const {
    return head_rows(data, strides, chunk.head / s_.H, chunk.head % s_.H).from(chunk.first);
  }

  // The states before and after chunk `index` of a head; null where there is none.
  const T* before(int64_t head, int64_t index) const {
    return index > 0 ? after(head, index - 1) : a_.initial ? a_.initial + head * s_.state_size() : nullptr;
  }
  T* after(int64_t head, int64_t index) const {
    const int64_t between = s_.chunks() - 1;
    if (index < between) return a_.states + (head * between + index) * s_.state_size();
    return a_.final ? a_.final + head * s_.state_size() : nullptr;
  }

  // Of this chunk alone.
  void summarise(const Chunk& chunk, T* memory) const {
    T* const state = after(chunk.head, chunk.index);
    if (!state) return;
    const Scratch scratch = parts_of(memory);
    const Rows<const T> k = rows(a_.k, a_.k_strides, chunk), v = rows(a_.v, a_.v_strides, chunk);
    T ones[kQueries<T>];
    std::fill_n(ones, kQueries<T>, T(1));
    for (int64_t i = 0; i < chunk.end - chunk.first; i += kQueries<T>) {
      const int64_t count = std::min(kQueries<T>, chunk.end - chunk.first - i);
      const Rows<const T> keys = mapped(s_, k.from(i), count, scratch.queries);
      pack_transposed(keys, count, s_.f, scratch.transposed, kQueries<T>);
      const T* const phi = features(s_, Side::key, scratch.transposed, scratch.features);
      add_to_state(s_, phi, v.from(i), ones, count, i == 0, state);
    }
  }

  void accumulate(int64_t head, int64_t begin, int64_t end) const {
    const T* previous = before(head, 0);
    for (int64_t index = 0; index < s_.chunks(); ++index) {
      T* const state = after(head, index);
      if (state && previous)
        for (int64_t i = begin; i < end; ++i) state[i] += previous[i];
      previous = state;
    }
    if (s_.chunks() > 0 || !a_.final) return;
    T* const final = a_.final + head * s_.state_size();
    for (int64_t i = begin; i < end; ++i) final[i] = previous ? previous[i] : T(0);
  }

  void attend(const Chunk& chunk, T* memory) const {
    const Scratch scratch = parts_of(memory);
    const Rows<const T> k = rows(a_.k, a_.k_strides, chunk);
    const Rows<const T> keys = mapped(s_, k, chunk.end - chunk.first, scratch.keys);
    for (int64_t first = chunk.first; first < chunk.end; first += kQueries<T>)
      attend(chunk, QueryTile<T>(tiles_, first / kQueries<T>), keys, scratch);
  }

  // Results of a tile of queries; `keys` begin at the chunk's first token.
  void attend(const Chunk& chunk, const QueryTile<T>& queries, const Rows<const T>& keys,
              const Scratch& scratch) const {
    const int64_t offset = queries.first - chunk.first;
    const Rows<const T> q = mapped(s_, rows(a_.q, a_.q_strides, chunk).from(offset), queries.count, scratch.queries);
    const Rows<const T> v = rows(a_.v, a_.v_strides, chunk);
    const Rows<T> y = head_rows(a_.y, a_.y_strides, chunk.head / s_.H, chunk.head % s_.H).from(queries.first);
    transpose_queries(s_, q, queries.count, scratch.transposed);
    const Rows<const T> from_start{keys.data - chunk.first * keys.stride, keys.stride};
    T sums[kQueries<T>] = {};
    for (int64_t first = chunk.first; first < queries.keys_end; first += kKeys<T>) {
      const KeyTile<T> tile(tiles_, queries, first, queries.keys_end);
      attention::scores(tile, from_start, scratch.transposed, s_.f, scratch.weights);
      if (s_.taylor() || s_.normalise) weigh(tile, scratch.weights, sums);
      attention::gather_from_keys(tile, scratch.weights, v.from(first - chunk.first), s_.dv, y, first > chunk.first);
    }
    if (const T* const state = before(chunk.head, chunk.index)) {
      const T* const phi = features(s_, Side::query, scratch.transposed, scratch.features);
      blas::gemm(true, false, queries.count, s_.dv, s_.features(), T(1), phi, kQueries<T>, state, s_.state_columns(),
                 T(1), y.data, y.stride);
      if (s_.normalise) add_last_column(s_, state, phi, sums);
    }
    if (s_.normalise) divide(queries, sums, y, a_.inverse + chunk.head * s_.T + queries.first);
  }

  // Scores become weights, which are added to the queries' sums.
  void weigh(const KeyTile<T>& tile, T* weights, T* sums) const {
    const bool taylor = s_.taylor();
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t lane = v * Vec::size;
      const auto range = tile.range(v);
      Vec sum = Vec::load(sums + lane);
      for (int64_t j = range.begin; j < range.end; ++j) {
        T* const at = weights + j * kQueries<T> + lane;
        Vec weight = Vec::load(at);
        if (taylor) {
          weight = T(1) + weight * (T(1) + T(0.5) * weight);
          weight.store(at);
        }
        sum += j >= range.full_begin && j < range.full_end ? weight : select(tile.mask(v, j), weight, T(0));
      }
      sum.store(sums + lane);
    }
  }

  void divide(const QueryTile<T>& queries, const T* sums, const Rows<T>& y, T* inverse) const {
    for (int64_t i = 0; i < queries.count; ++i) {
      inverse[i] = 1 / (sums[i] + T(a_.eps));
      for (int64_t d = 0; d < s_.dv; d += Vec::size)
        (Vec::load(y[i] + d, s_.dv - d) * inverse[i]).store(y[i] + d, s_.dv - d);
    }
  }

  const LinearAttentionFwd<T>& a_;
  const LinearAttentionShape& s_;
  AttentionShape tiles_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const LinearAttentionFwd<T>& a) {
  if (a.shape.work() < LinearAttentionShape::kSerialWork) cpu.threads = 1;
  Forward<T>(a).run(cpu);
}

template void run(Cpu, const LinearAttentionFwd<float>&);
template void run(Cpu, const LinearAttentionFwd<double>&);

}  // namespace margay::kernels
