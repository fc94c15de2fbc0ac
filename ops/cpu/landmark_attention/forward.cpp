#include "engine/parallel.h"
#include "ops/cpu/landmark_attention/row_softmax.h"
#include "ops/cpu/landmark_attention/tile.h"

namespace margay::kernels {
namespace {

using namespace landmark;  // NOLINT: this file is the forward half of it

// Every query keeps the maximum and the sum of what is under its outer softmax so far, as in flash attention. A group's
// block enters with one logit and a mass: maximum and sum of its scores, raised by its landmark's logit if that is
// additive; or, grouped, the landmark's logit and 1, the weights inside the block summing to 1.
template <class T>
class Forward {
 public:
  explicit Forward(const LandmarkAttentionFwd<T>& a)
      : a_(a), s_(a.shape), rows_(a.rows()), width_(LandmarkShape::padded(a.columns())) {}

  void run(Cpu cpu) const {
    const int64_t units = a_.units(), pieces = a_.pieces();
    parallel_for(cpu, pieces, [&](int64_t piece) {
      for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit)
        attend(unit, a_.workspace + piece * a_.scratch_size(), a_.lists + piece * a_.lists_size());
    });
  }

 private:
  using Args = LandmarkAttentionFwd<T>;
  using Vec = simd::Vec<T>;
  static constexpr int64_t kMostRows = Args::kMostRows;

  struct Task {
    HeadTile<T> at;
    Rows<T> y;
    T* keys;               // transposed: [dh, width]
    T *queries, *results;  // [rows, dh]
    T *weights, *factors;  // [rows, width], [width]
    T *maximum, *sum;      // of each query of the tile
  };

  void attend(int64_t unit, T* memory, int32_t* lists) const {
    // The last tiles may see the most blocks, so they come first.
    const HeadTile<T> at(a_, unit / s_.tiles(), s_.tiles() - 1 - unit % s_.tiles());
    Workspace<T> scratch{memory};
    const Task task{.at = at,
                    .y = at.rows_of(a_, a_.y, a_.y_strides).from(at.tile.first),
                    .keys = scratch.take(s_.dh * width_),
                    .queries = scratch.take(rows_ * s_.dh),
                    .results = scratch.take(rows_ * s_.dh),
                    .weights = scratch.take(rows_ * width_),
                    .factors = scratch.take(width_),
                    .maximum = scratch.take(s_.tile),
                    .sum = scratch.take(s_.tile)};
    const Readers readers(s_, at.tile, at.blocks, a_.K, lists);
    const auto prepare = [&](int64_t block, int64_t columns) {
      if (at.tile.count > 1) pack_transposed(at.k.from(block * s_.W), columns, s_.dh, task.keys, width_);
    };
    for_groups(s_, at.tile, readers, rows_, prepare, [&](const Group& group) { absorb(task, group); });
    finish(task);
  }

  void absorb(const Task& task, const Group& group) const {
    const HeadTile<T>& at = task.at;
    const Rows<const T> values = at.v.from(group.block * s_.W);
    score(task, group);
    T logit[kMostRows], mass[kMostRows], rescale[kMostRows], factor[kMostRows];
    for (int64_t r = 0; r < group.count; ++r) {
      const RowSoftmax<T> row = soften(task.weights + r * width_, group.visible(r), at.scale);
      logit[r] = row.maximum;
      mass[r] = row.sum;
    }
    thin(task, group);
    if (group.local) {  // its first block
      std::copy_n(logit, group.count, task.maximum + group.queries[0]);
      std::copy_n(mass, group.count, task.sum + group.queries[0]);
      gather_from_keys(group, task.weights, width_, values, s_.dh, task.y.from(group.queries[0]));
      return;
    }
    merge(task, group, logit, mass, rescale, factor);
    gather_from_keys(group, task.weights, width_, values, s_.dh, Rows<T>{task.results, s_.dh}, factor);
    for (int64_t r = 0; r < group.count; ++r)
      combine_rows(rescale[r], task.y[group.queries[r]], T(1), task.results + r * s_.dh, s_.dh);
  }

  void score(const Task& task, const Group& group) const {
    const HeadTile<T>& at = task.at;
    if (at.tile.count > 1) {
      multiply(group, gather(group, at.q, s_.dh, task.queries), task.keys, width_, s_.dh, task.weights);
      return;
    }
    // A single query (decoding): transposing the keys would cost more than it saves.
    const Rows<const T> keys = at.k.from(group.block * s_.W);
    for (int64_t j = 0; j < group.columns; ++j) task.weights[j] = dot(at.q[0], keys[j], s_.dh);
  }

  // Multiplies weights with what dropout leaves of them; their sums are not changed.
  void thin(const Task& task, const Group& group) const {
    if (a_.dropout.rate == 0) return;
    const DropoutRow<T> dropout(a_, task.factors);
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t n = group.visible(r);
      const T* const factors = dropout.make(task.at, group.queries[r], group.block, n);
      T* const row = task.weights + r * width_;
      for (int64_t j = 0; j < n; j += Vec::size)
        (Vec::load(row + j, n - j) * Vec::load(factors + j, n - j)).store(row + j, n - j);
    }
  }

  // Takes a block into the outer softmax of queries that retrieve it: `rescale` is for what they have gathered so far,
  // `factor` for what comes. Maximum and sum of the block's scores come in `logit` and `mass`.
  void merge(const Task& task, const Group& group, T* logit, T* mass, T* rescale, T* factor) const {
    T before[kMostRows], sum[kMostRows], divisor[kMostRows];
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t i = group.queries[r];
      before[r] = task.maximum[i];
      sum[r] = task.sum[i];
      divisor[r] = 1;
      if (a_.gate == LandmarkGate::none) continue;
      const T gate = task.at.gate(i, group.block, s_.dh);
      if (a_.gate == LandmarkGate::grouped) {
        logit[r] = gate;
        divisor[r] = mass[r];
        mass[r] = 1;
      } else {
        logit[r] += gate;
      }
    }
    for (int64_t r = 0; r < group.count; r += Vec::size) {
      const int64_t n = group.count - r;
      const Vec old = Vec::load(before + r, n), offered = Vec::load(logit + r, n), top = max(old, offered);
      const Vec keep = exp(old - top), weight = exp(offered - top);
      top.store(before + r, n);
      keep.store(rescale + r, n);
      (weight / Vec::load(divisor + r, n, T(1))).store(factor + r, n);
      (Vec::load(sum + r, n) * keep + weight * Vec::load(mass + r, n)).store(sum + r, n);
    }
    for (int64_t r = 0; r < group.count; ++r) {
      task.maximum[group.queries[r]] = before[r];
      task.sum[group.queries[r]] = sum[r];
    }
  }

  void finish(const Task& task) const {
    const QueryTile& tile = task.at.tile;
    for (int64_t i = 0; i < tile.count; ++i) scale_row(task.y[i], 1 / task.sum[i], s_.dh);
    if (!a_.lse) return;
    T* const lse = a_.lse + task.at.row * s_.Lq + tile.first;
    for (int64_t i = 0; i < tile.count; i += Vec::size) {
      const int64_t n = tile.count - i;
      (Vec::load(task.maximum + i, n) + log(Vec::load(task.sum + i, n, T(1)))).store(lse + i, n);
    }
  }

  const Args& a_;
  const LandmarkShape& s_;
  int64_t rows_, width_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const LandmarkAttentionFwd<T>& a) {
  if (a.work() < LandmarkShape::kSerialWork) cpu.threads = 1;
  Forward<T>(a).run(cpu);
}

template void run(Cpu, const LandmarkAttentionFwd<float>&);
template void run(Cpu, const LandmarkAttentionFwd<double>&);

}  // namespace margay::kernels
