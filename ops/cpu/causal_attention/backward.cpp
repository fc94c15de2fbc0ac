#include <optional>

#include "engine/parallel.h"
#include "ops/cpu/causal_attention/tile.h"

namespace margay::kernels {
namespace {

using namespace attention;  // NOLINT: this file is the backward half of it

// With S = scale q k^T, P = exp(S - lse), dP = dy v^T and delta = rowsum(dy y):
//   dS = P (dP - delta), dv = P^T dy, dq = scale dS k, dk = scale dS^T q, dscale = sum of dS (q k^T) = sum of q (dS k).
// Dropout with factors F turns P into P F in dv, and dP into F dP.
// P is computed again, tile by tile. What lies outside of the band in a tile of P or dS is never read.
template <class T>
class Backward {
 public:
  explicit Backward(const CausalAttentionBwd<T>& a) : a_(a), s_(a.shape), groups_(a.groups()) {}

  void run(Cpu cpu) const {
    const int64_t units = a_.units(), pieces = Args::Tiling::pieces(units);
    parallel_for(cpu, pieces, [&](int64_t piece) {
      T* const scratch = a_.workspace + piece * a_.scratch_size();
      for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit) attend(unit, scratch);
    });
    if (groups_ > 1) {
      const int64_t blocks = (s_.Lk + kKeys<T> - 1) / kKeys<T>;
      parallel_for(cpu, s_.B * s_.H * blocks,
                   [&](int64_t piece) { combine(piece / blocks, piece % blocks * kKeys<T>); });
    }
    if (!a_.dbeta) return;
    for (int64_t head = 0; head < s_.H; ++head) {
      T sum = 0;
      for (int64_t batch = 0; batch < s_.B; ++batch)
        for (int64_t group = 0; group < groups_; ++group) sum += dscale((batch * s_.H + head) * groups_ + group);
      a_.dbeta[head] = sum;
    }
  }

 private:
  using Args = CausalAttentionBwd<T>;
  using Vec = simd::Vec<T>;

  struct Head {
    int64_t batch, head;
    Rows<const T> q, k, v, y, dy;
    Rows<T> dq, dk, dv;
    T scale;
  };
  struct Scratch {
    T *queries, *cotangents;  // transposed: [dh, kQueries]
    T *weights, *dscores;     // [kKeys, kQueries]
    std::optional<DropoutFactors<T>> dropout;
  };

  Head head_at(int64_t row) const {
    const int64_t b = row / s_.H, h = row % s_.H;
    return {b,
            h,
            head_rows(a_.q, a_.q_strides, b, h),
            head_rows(a_.k, a_.k_strides, b, h),
            head_rows(a_.v, a_.v_strides, b, h),
            head_rows(a_.y, a_.y_strides, b, h),
            head_rows(a_.dy, a_.dy_strides, b, h),
            head_rows(a_.dq, a_.dq_strides, b, h),
            head_rows(a_.dk, a_.dk_strides, b, h),
            head_rows(a_.dv, a_.dv_strides, b, h),
            a_.beta ? a_.beta[h] : T(a_.scale)};
  }

  // Every groups_-th tile of queries of a head.
  void attend(int64_t unit, T* memory) const {
    const int64_t group = unit % groups_, tiles = Args::Tiling::tiles(s_);
    Head head = head_at(unit / groups_);
    if (groups_ > 1) {
      head.dk = {partial(unit), s_.dh};
      head.dv = {partial(unit) + s_.Lk * s_.dh, s_.dh};
    }
    T *const cotangents = memory + s_.dh * kQueries<T>, *const weights = cotangents + s_.dh * kQueries<T>;
    Scratch scratch{memory, cotangents, weights, weights + Args::Tiling::kTile, {}};
    if (a_.dropout.rate > 0) scratch.dropout.emplace(s_, a_.dropout, weights + 2 * Args::Tiling::kTile);
    T sum = 0;
    int64_t written = 0;
    for (int64_t index = group; index < tiles; index += groups_)
      sum += pull_back(head, QueryTile<T>(s_, index), scratch, written);
    dscale(unit) = sum;
    clear(head, written, s_.Lk);
    if (groups_ == 1)
      for (int64_t j = 0; j < s_.Lk; ++j) scale_row(head.dk[j], head.scale, s_.dh);
  }

  void clear(const Head& head, int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      std::fill_n(head.dk[j], s_.dh, T(0));
      std::fill_n(head.dv[j], s_.dh, T(0));
    }
  }

  // dq of a tile of queries, and what it adds to dk / scale and dv, of which rows below `written` hold something.
  // Returns what it adds to dscale.
  T pull_back(const Head& head, const QueryTile<T>& queries, const Scratch& scratch, int64_t& written) const {
    const Rows<const T> q = head.q.from(queries.first), dy = head.dy.from(queries.first);
    const Rows<T> dq = head.dq.from(queries.first);
    pack_transposed(q, queries.count, s_.dh, scratch.queries, kQueries<T>);
    pack_transposed(dy, queries.count, s_.dh, scratch.cotangents, kQueries<T>);
    T delta[kQueries<T>] = {}, lse[kQueries<T>] = {};
    for (int64_t i = 0; i < queries.count; ++i) delta[i] = dot(dy[i], head.y[queries.first + i], s_.dh);
    std::copy_n(a_.lse + (head.batch * s_.H + head.head) * s_.Lq + queries.first, queries.count, lse);
    for (int64_t first = queries.keys_begin; first < queries.keys_end; first += kKeys<T>) {
      const KeyTile<T> tile(s_, queries, first, queries.keys_end);
      scores(tile, head.k, scratch.queries, s_.dh, scratch.weights);
      scores(tile, head.v, scratch.cotangents, s_.dh, scratch.dscores);
      const T* const factors =
          scratch.dropout ? scratch.dropout->make(head.batch * s_.H + head.head, queries, tile) : nullptr;
      differentiate(tile, head.scale, lse, delta, factors, scratch);
      const bool add = first < written;
      clear(head, written, add ? first + tile.count : first);
      written = std::max(written, first + tile.count);
      gather_from_queries(tile, scratch.weights, dy, s_.dh, head.dv.from(first), add);
      gather_from_queries(tile, scratch.dscores, q, s_.dh, head.dk.from(first), add);
      gather_from_keys(tile, scratch.dscores, head.k.from(first), s_.dh, dq, first > queries.keys_begin);
    }
    T dscale = 0;
    for (int64_t i = 0; i < queries.count; ++i) {
      if (a_.dbeta) dscale += dot<T>(dq[i], q[i], s_.dh);
      scale_row(dq[i], head.scale, s_.dh);
    }
    return dscale;
  }

  // Scores become weights, and gradients of the weights become gradients of the scores.
  static void differentiate(const KeyTile<T>& tile, T scale, const T* lse, const T* delta, const T* factors,
                            const Scratch& scratch) {
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const int64_t lane = v * Vec::size;
      const auto range = tile.range(v);
      const Vec shift = Vec::load(lse + lane), mean = Vec::load(delta + lane);
      for (int64_t j = range.begin; j < range.end; ++j) {
        const int64_t at = j * kQueries<T> + lane;
        Vec weight = exp(Vec::load(scratch.weights + at) * scale - shift), dweight = Vec::load(scratch.dscores + at);
        if (factors) dweight *= Vec::load(factors + at);
        (weight * (dweight - mean)).store(scratch.dscores + at);
        if (factors) weight *= Vec::load(factors + at);
        weight.store(scratch.weights + at);
      }
    }
  }

  // dk and dv of some keys of a head: the sum over its groups, in their order.
  void combine(int64_t row, int64_t first) const {
    const Head head = head_at(row);
    for (int64_t j = first; j < std::min(s_.Lk, first + kKeys<T>); ++j) {
      for (int64_t d = 0; d < s_.dh; d += Vec::size) {
        const int64_t n = s_.dh - d;
        Vec dk(T(0)), dv(T(0));
        for (int64_t group = 0; group < groups_; ++group) {
          const T* const source = partial(row * groups_ + group) + j * s_.dh + d;
          dk += Vec::load(source, n);
          dv += Vec::load(source + s_.Lk * s_.dh, n);
        }
        (dk * head.scale).store(head.dk[j] + d, n);
        dv.store(head.dv[j] + d, n);
      }
    }
  }

  T* partial(int64_t unit) const { return a_.workspace + a_.partials_begin() + unit * a_.partial_size(); }
  T& dscale(int64_t unit) const { return a_.workspace[a_.dbeta_begin() + unit]; }

  const Args& a_;
  const AttentionShape& s_;
  int64_t groups_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const CausalAttentionBwd<T>& a) {
  if (a.shape.work() < AttentionTiling<T>::kSerialWork) cpu.threads = 1;
  Backward<T>(a).run(cpu);
}

template void run(Cpu, const CausalAttentionBwd<float>&);
template void run(Cpu, const CausalAttentionBwd<double>&);

}  // namespace margay::kernels
