#include "engine/parallel.h"
#include "ops/cpu/landmark_attention/row_softmax.h"
#include "ops/cpu/landmark_attention/tile.h"

namespace margay::kernels {
namespace {

using namespace landmark;  // NOLINT: this file is the backward half of it

// w_j is the weight of token j, dw_j = dy . v_j, D = sum_j w_j dw_j = dy . y. As y = sum_j w_j v_j,
//   local, additive, none:  w_j = exp(s_j + gate - lse),                       ds_j = w_j (dw_j - D),
//   grouped, j in block m:  w_j = P_m a_j, P_m = exp(g_m - lse), a = softmax(s),  ds_j = w_j (dw_j - D_m)
//                           with D_m = sum over block m of a_j dw_j,           dg_m = P_m (D_m - D),
//   additive:               dg_m = sum over block m of ds_j.
// From there: dv = w^T dy, dq = scale ds k, dk = scale ds^T q, dscale = sum of q . (ds k); dlandmark_q = dg landmarks,
// dlandmarks = dg^T landmark_q, dbias = sum of dg. Dropout with factors F turns w into F w in dv, and dw into F dw.
// Weights are computed again, group by group.
template <class T>
class Backward {
 public:
  explicit Backward(const LandmarkAttentionBwd<T>& a)
      : a_(a), s_(a.shape), groups_(a.groups()), rows_(a.rows()), width_(LandmarkShape::padded(a.columns())) {}

  void run(Cpu cpu) const {
    const int64_t units = a_.units(), pieces = a_.pieces();
    parallel_for(cpu, pieces, [&](int64_t piece) {
      for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit)
        attend(unit, a_.workspace + piece * a_.scratch_size(), a_.lists + piece * a_.lists_size());
    });
    if (groups_ > 1) {
      const int64_t parts = (s_.Lk + kKeys - 1) / kKeys;
      parallel_for(cpu, s_.B * s_.H * parts, [&](int64_t part) { combine(part / parts, part % parts * kKeys); });
      if (a_.dlandmarks) parallel_for(cpu, s_.B * s_.H, [&](int64_t row) { combine_landmarks(row); });
    }
    sum_of_units(a_.dbias, 0);
    sum_of_units(a_.dbeta, 1);
  }

 private:
  using Args = LandmarkAttentionBwd<T>;
  using Vec = simd::Vec<T>;
  static constexpr int64_t kMostRows = Args::kMostRows, kKeys = 64;

  // Gradients of a head, or what one group of its tiles adds to them.
  struct Gradients {
    Rows<T> dk, dv;
    T* dlandmarks;
    T dbias = 0, dbeta = 0;
  };

  struct Task {
    HeadTile<T> at;
    Rows<const T> dy;                   // of the tile
    Rows<T> dq, dlandmark_q;            // of the tile
    const T* lse;                       // of the tile
    T* delta;                           // dy . y of each query of the tile
    T *keys, *values;                   // transposed: [dh, width]
    T *queries, *cotangents, *results;  // [rows, dh]
    T *weights, *dscores, *factors;     // [rows, width], [rows, width], [width]
  };

  Gradients gradients(int64_t unit) const {
    if (groups_ > 1) {
      T* const own = partial(unit);
      return {{own, s_.dh}, {own + s_.Lk * s_.dh, s_.dh}, own + 2 * s_.Lk * s_.dh};
    }
    return {head_rows(a_.dk, a_.dk_strides, unit / s_.H, unit % s_.H),
            head_rows(a_.dv, a_.dv_strides, unit / s_.H, unit % s_.H),
            a_.dlandmarks ? a_.dlandmarks + unit * s_.M * s_.dh : nullptr};
  }

  // Every groups_-th tile of queries of a head.
  void attend(int64_t unit, T* memory, int32_t* lists) const {
    Gradients sums = gradients(unit);
    for (int64_t j = 0; j < s_.Lk; ++j) {
      std::fill_n(sums.dk[j], s_.dh, T(0));
      std::fill_n(sums.dv[j], s_.dh, T(0));
    }
    if (sums.dlandmarks) std::fill_n(sums.dlandmarks, s_.M * s_.dh, T(0));
    for (int64_t index = unit % groups_; index < s_.tiles(); index += groups_)
      pull_back(HeadTile<T>(a_, unit / groups_, index), memory, lists, sums);
    if (groups_ == 1) {
      const T scale = scale_of(unit);
      for (int64_t j = 0; j < s_.Lk; ++j) scale_row(sums.dk[j], scale, s_.dh);
    }
    unit_sums(unit)[0] = sums.dbias;
    unit_sums(unit)[1] = sums.dbeta;
  }

  void pull_back(const HeadTile<T>& at, T* memory, int32_t* lists, Gradients& sums) const {
    const QueryTile& tile = at.tile;
    Workspace<T> scratch{memory};
    T *const delta = scratch.take(s_.tile), *const own = scratch.take(s_.tile * s_.dh);
    const Rows<T> dlandmark_q =
        a_.dlandmark_q ? at.rows_of(a_, a_.dlandmark_q, a_.dlandmark_q_strides).from(tile.first) : Rows<T>{own, s_.dh};
    const Task task{.at = at,
                    .dy = at.rows_of(a_, a_.dy, a_.dy_strides).from(tile.first),
                    .dq = at.rows_of(a_, a_.dq, a_.dq_strides).from(tile.first),
                    .dlandmark_q = dlandmark_q,
                    .lse = a_.lse + at.row * s_.Lq + tile.first,
                    .delta = delta,
                    .keys = scratch.take(s_.dh * width_),
                    .values = scratch.take(s_.dh * width_),
                    .queries = scratch.take(rows_ * s_.dh),
                    .cotangents = scratch.take(rows_ * s_.dh),
                    .results = scratch.take(rows_ * s_.dh),
                    .weights = scratch.take(rows_ * width_),
                    .dscores = scratch.take(rows_ * width_),
                    .factors = scratch.take(width_)};
    const Rows<const T> y = at.rows_of(a_, a_.y, a_.y_strides).from(tile.first);
    for (int64_t i = 0; i < tile.count; ++i) {
      delta[i] = dot(task.dy[i], y[i], s_.dh);
      std::fill_n(dlandmark_q[i], s_.dh, T(0));
    }
    const Readers readers(s_, tile, at.blocks, a_.K, lists);
    const auto prepare = [&](int64_t block, int64_t columns) {
      pack_transposed(at.k.from(block * s_.W), columns, s_.dh, task.keys, width_);
      pack_transposed(at.v.from(block * s_.W), columns, s_.dh, task.values, width_);
    };
    for_groups(s_, tile, readers, rows_, prepare, [&](const Group& group) { absorb(task, group, sums); });
    finish(task, sums);
  }

  void absorb(const Task& task, const Group& group, Gradients& sums) const {
    const HeadTile<T>& at = task.at;
    const int64_t first_key = group.block * s_.W;
    const Rows<const T> q = gather(group, at.q, s_.dh, task.queries);
    const Rows<const T> dy = gather(group, task.dy, s_.dh, task.cotangents);
    multiply(group, q, task.keys, width_, s_.dh, task.weights);
    multiply(group, dy, task.values, width_, s_.dh, task.dscores);
    T dgate[kMostRows];
    differentiate(task, group, dgate);
    gather_from_queries(group, task.weights, width_, dy, s_.dh, sums.dv.from(first_key));
    gather_from_queries(group, task.dscores, width_, q, s_.dh, sums.dk.from(first_key));
    if (group.local) {  // its first block
      gather_from_keys(group, task.dscores, width_, at.k.from(first_key), s_.dh, task.dq.from(group.queries[0]));
      return;
    }
    gather_from_keys(group, task.dscores, width_, at.k.from(first_key), s_.dh, Rows<T>{task.results, s_.dh});
    for (int64_t r = 0; r < group.count; ++r)
      combine_rows(T(1), task.dq[group.queries[r]], T(1), task.results + r * s_.dh, s_.dh);
    if (a_.gate == LandmarkGate::none) return;
    T* const dlandmark = sums.dlandmarks + group.block * s_.dh;
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t i = group.queries[r];
      combine_rows(T(1), dlandmark, dgate[r], at.landmark_q[i], s_.dh);
      combine_rows(T(1), task.dlandmark_q[i], dgate[r], at.landmarks[group.block], s_.dh);
      sums.dbias += dgate[r];
    }
  }

  // Scores become weights (times dropout), and gradients of the weights become gradients of the scores.
  void differentiate(const Task& task, const Group& group, T* dgate) const {
    const bool gated = !group.local && a_.gate != LandmarkGate::none;
    const bool grouped = gated && a_.gate == LandmarkGate::grouped;
    T gate[kMostRows] = {}, share[kMostRows];
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t i = group.queries[r];
      gate[r] = (gated ? task.at.gate(i, group.block, s_.dh) : T(0)) - task.lse[i];
    }
    if (grouped)
      for (int64_t r = 0; r < group.count; r += Vec::size)
        exp(Vec::load(gate + r, group.count - r)).store(share + r, group.count - r);
    const DropoutRow<T> dropout(a_, task.factors);
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t n = group.visible(r), i = group.queries[r];
      const T* const factors = dropout.make(task.at, i, group.block, n);
      T *const weights = task.weights + r * width_, *const dscores = task.dscores + r * width_;
      if (grouped) {
        dgate[r] = pull_grouped(n, task.at.scale, share[r], task.delta[i], factors, weights, dscores);
      } else {
        dgate[r] = pull_joint(n, task.at.scale, gate[r], task.delta[i], factors, weights, dscores);
      }
    }
  }

  static Vec thinned(const T* values, const T* factors, int64_t j, int64_t n) {
    const Vec value = Vec::load(values + j, n - j);
    return factors ? value * Vec::load(factors + j, n - j) : value;
  }

  // A row of a block whose tokens share the landmark's weight; returns the gradient of the landmark's logit.
  static T pull_grouped(int64_t n, T scale, T share, T delta, const T* factors, T* weights, T* dscores) {
    const T sum = soften(weights, n, scale).sum, factor = share / sum;
    Vec total(T(0));
    for (int64_t j = 0; j < n; j += Vec::size) total += Vec::load(weights + j, n - j) * thinned(dscores, factors, j, n);
    const T mean = reduce_add(total) / sum;
    for (int64_t j = 0; j < n; j += Vec::size) {
      const Vec weight = Vec::load(weights + j, n - j) * factor;
      (weight * (thinned(dscores, factors, j, n) - mean)).store(dscores + j, n - j);
      (factors ? weight * Vec::load(factors + j, n - j) : weight).store(weights + j, n - j);
    }
    return share * (mean - delta);
  }

  // A row of tokens under the outer softmax, with weights exp(scale score + shift); returns the gradient of the shift.
  static T pull_joint(int64_t n, T scale, T shift, T delta, const T* factors, T* weights, T* dscores) {
    Vec total(T(0));
    for (int64_t j = 0; j < n; j += Vec::size) {
      const Vec weight = exp(scaled(weights, j, n, scale) + shift);
      const Vec dscore = weight * (thinned(dscores, factors, j, n) - delta);
      total += dscore;
      dscore.store(dscores + j, n - j);
      (factors ? weight * Vec::load(factors + j, n - j) : weight).store(weights + j, n - j);
    }
    return reduce_add(total);
  }

  void finish(const Task& task, Gradients& sums) const {
    const HeadTile<T>& at = task.at;
    for (int64_t i = 0; i < at.tile.count; ++i) {
      if (a_.dbeta) sums.dbeta += dot<T>(task.dq[i], at.q[i], s_.dh);
      if (a_.dlandmark_q) {
        scale_row(task.dq[i], at.scale, s_.dh);
      } else {
        combine_rows<T>(at.scale, task.dq[i], T(1), task.dlandmark_q[i], s_.dh);
      }
    }
  }

  // dk and dv of some keys of a head: the sum over its groups, in their order.
  void combine(int64_t row, int64_t first) const {
    const T scale = scale_of(row);
    const Rows<T> dk = head_rows(a_.dk, a_.dk_strides, row / s_.H, row % s_.H);
    const Rows<T> dv = head_rows(a_.dv, a_.dv_strides, row / s_.H, row % s_.H);
    for (int64_t j = first; j < std::min(s_.Lk, first + kKeys); ++j) {
      sum_of_groups(row, j * s_.dh, s_.dh, dk[j]);
      sum_of_groups(row, (s_.Lk + j) * s_.dh, s_.dh, dv[j]);
      scale_row(dk[j], scale, s_.dh);
    }
  }
  void combine_landmarks(int64_t row) const {
    sum_of_groups(row, 2 * s_.Lk * s_.dh, s_.M * s_.dh, a_.dlandmarks + row * s_.M * s_.dh);
  }
  void sum_of_groups(int64_t row, int64_t begin, int64_t size, T* to) const {
    for (int64_t i = 0; i < size; i += Vec::size) {
      Vec sum(T(0));
      for (int64_t group = 0; group < groups_; ++group)
        sum += Vec::load(partial(row * groups_ + group) + begin + i, size - i);
      sum.store(to + i, size - i);
    }
  }

  // The sum over batches and groups of what their units left at `place`.
  void sum_of_units(T* to, int64_t place) const {
    if (!to) return;
    for (int64_t head = 0; head < s_.H; ++head) {
      T sum = 0;
      for (int64_t batch = 0; batch < s_.B; ++batch)
        for (int64_t group = 0; group < groups_; ++group)
          sum += unit_sums((batch * s_.H + head) * groups_ + group)[place];
      to[head] = sum;
    }
  }

  T scale_of(int64_t row) const { return a_.beta ? a_.beta[row % s_.H] : T(a_.scale); }
  T* partial(int64_t unit) const { return a_.workspace + a_.partials_begin() + unit * a_.partial_size(); }
  T* unit_sums(int64_t unit) const { return a_.workspace + a_.sums_begin() + 2 * unit; }

  const Args& a_;
  const LandmarkShape& s_;
  int64_t groups_, rows_, width_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const LandmarkAttentionBwd<T>& a) {
  if (a.work() < LandmarkShape::kSerialWork) cpu.threads = 1;
  Backward<T>(a).run(cpu);
}

template void run(Cpu, const LandmarkAttentionBwd<float>&);
template void run(Cpu, const LandmarkAttentionBwd<double>&);

}  // namespace margay::kernels
