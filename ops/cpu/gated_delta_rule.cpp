#include "ops/gated_delta_rule.h"
#include "engine/parallel.h"

#include <algorithm>

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

/// One head: rows of its tokens.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t stride = 0;
  T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T>
HeadRows<T> rows_of(T* data, const HeadStrides& strides, const DeltaRuleShape& s, int64_t head) {
  if (!data) return {};
  return {data + head / s.H * strides.batch + head % s.H * strides.head, strides.row};
}

/// One token of one head, as read by a step of the recurrence.
template <class T>
struct Token {
  const T *q, *k, *v, *decay;  // decay[d] = e^log_decay
  const T* beta;               // null: no correction
};

/// Calls body.operator()<vectors, partial>(column, count) for blocks that cover the columns.
template <class T, class Body>
void for_columns(int64_t columns, const Body& body) {
  constexpr int64_t size = simd::Vec<T>::size;
  int64_t j = 0;
  for (; j + 4 * size <= columns; j += 4 * size) body.template operator()<4, false>(j, size);
  for (; j + size <= columns; j += size) body.template operator()<1, false>(j, size);
  if (j < columns) body.template operator()<1, true>(j, columns - j);
}

// Some vectors of a row; the last `count` lanes of a partial one.
template <class T, int V, bool partial>
struct Columns {
  using Vec = simd::Vec<T>;
  int64_t first, count;
  Vec load(const T* row, int v) const {
    return partial ? Vec::load(row + first, count) : Vec::load(row + first + v * Vec::size);
  }
  void store(Vec x, T* row, int v) const {
    if constexpr (partial) {
      x.store(row + first, count);
    } else {
      x.store(row + first + v * Vec::size);
    }
  }
};

template <class T>
class DeltaRule {
 public:
  using Vec = simd::Vec<T>;

  DeltaRule(const DeltaRuleInputs<T>& in, int64_t head)
      : s_(in.shape),
        q_(rows_of(in.q, in.q_strides, s_, head)),
        k_(rows_of(in.k, in.k_strides, s_, head)),
        v_(rows_of(in.v, in.v_strides, s_, head)),
        log_decay_(rows_of(in.log_decay, in.decay_strides, s_, head)),
        beta_(rows_of(in.beta, in.beta_strides, s_, head)) {}

  /// The factors [f] by which token t lets each row of the state decay.
  void decays(int64_t t, T* out) const {
    if (s_.decay == Decay::feature) {
      for (int64_t d = 0; d < s_.f; d += Vec::size)
        exp(Vec::load(log_decay_[t] + d, s_.f - d)).store(out + d, s_.f - d);
    } else {
      std::fill_n(out, s_.f, s_.decay == Decay::none ? T(1) : T(exp(Vec(*log_decay_[t])).v[0]));
    }
  }
  Token<T> token(int64_t t, const T* decays) const {
    return {q_[t], k_[t], v_[t], decays, beta_.data ? beta_[t] : nullptr};
  }

  /// to = P + k w^T, residual = v - P^T k (or v), y = to^T q unless it is null. `from` may be `to`.
  void step(const Token<T>& x, const T* from, T* to, T* residual, T* y) const {
    for_columns<T>(s_.dv, [&]<int V, bool partial>(int64_t column, int64_t count) {
      step_columns(Columns<T, V, partial>{column, count}, s_.f, s_.dv, x, from, to, residual, y);
    });
  }

 private:
  // Everything by value: what is read through pointers would be read again after every store.
  template <int V, bool partial>
  static void step_columns(Columns<T, V, partial> columns, int64_t f, int64_t dv, Token<T> x, const T* from, T* to,
                           T* residual, T* y) {
    Vec w[V], out[V];
    for (int v = 0; v < V; ++v) w[v] = columns.load(x.v, v), out[v] = Vec(T(0));
    if (x.beta) {
      for (int64_t d = 0; d < f; ++d) {
        const T factor = x.k[d] * x.decay[d];
        for (int v = 0; v < V; ++v) w[v] -= columns.load(from + d * dv, v) * factor;
      }
    }
    const T beta = x.beta ? *x.beta : T(1);
    for (int v = 0; v < V; ++v) {
      columns.store(w[v], residual, v);
      w[v] *= beta;
    }
    for (int64_t d = 0; d < f; ++d) {
      const T decay = x.decay[d], key = x.k[d], query = y ? x.q[d] : T(0);
      for (int v = 0; v < V; ++v) {
        const Vec state = columns.load(from + d * dv, v) * decay + w[v] * key;
        columns.store(state, to + d * dv, v);
        out[v] += state * query;
      }
    }
    if (!y) return;
    for (int v = 0; v < V; ++v) columns.store(out[v], y, v);
  }

  const DeltaRuleShape& s_;
  HeadRows<const T> q_, k_, v_, log_decay_, beta_;
};

template <class T>
void fill_state(const DeltaRuleShape& s, const T* source, T* state) {
  source ? std::copy_n(source, s.state_size(), state) : std::fill_n(state, s.state_size(), T(0));
}

// Calls body(head, scratch) for all heads.
template <class Args, class Body>
void for_each_head(Cpu cpu, const Args& a, const Body& body) {
  if (a.shape.work() < DeltaRuleShape::kSerialWork) cpu.threads = 1;
  const int64_t heads = a.shape.heads(), pieces = a.shape.pieces(a.scratch_size());
  parallel_for(cpu, pieces, [&](int64_t piece) {
    for (int64_t head = piece * heads / pieces; head < (piece + 1) * heads / pieces; ++head)
      body(head, a.workspace + piece * a.scratch_size());
  });
}

template <class T>
void forward(const GatedDeltaRuleFwd<T>& a, int64_t head, T* scratch) {
  const DeltaRuleShape& s = a.shape;
  const DeltaRule<T> rule(a, head);
  T *const state = scratch, *const residual = state + s.state_size(), *const decays = residual + s.dv;
  const HeadRows<T> y = rows_of(a.y, a.y_strides, s, head);
  fill_state(s, a.initial ? a.initial + head * s.state_size() : nullptr, state);
  for (int64_t t = 0; t < s.T; ++t) {
    if (a.states && t % DeltaRuleShape::kChunk == 0)
      std::copy_n(state, s.state_size(), a.states + (head * s.chunks() + t / DeltaRuleShape::kChunk) * s.state_size());
    rule.decays(t, decays);
    rule.step(rule.token(t, decays), state, state, residual, y[t]);
  }
  if (a.final) std::copy_n(state, s.state_size(), a.final + head * s.state_size());
}

// With G the gradient of S after token t, which already holds what later tokens add, r = v - P^T k and w = beta r:
//   G += q dy^T,   dq = S dy,   dw = G^T k,   dbeta = dw . r,   dv = beta dw,
//   dk = G w - P dv,   dP = G - k dv^T,   dlog_decay = decay * rowsum(dP * S before),   G before = diag(decay) dP.
// Without beta, w = v, dv = dw, and the terms of P's correction, - P dv and - k dv^T, are not there.
template <class T>
class Backward {
 public:
  Backward(const GatedDeltaRuleBwd<T>& a, int64_t head, T* scratch)
      : a_(a),
        s_(a.shape),
        head_(head),
        rule_(a, head),
        dy_(rows_of(a.dy, a.dy_strides, s_, head)),
        dq_(rows_of(a.dq, a.dq_strides, s_, head)),
        dk_(rows_of(a.dk, a.dk_strides, s_, head)),
        dv_(rows_of(a.dv, a.dv_strides, s_, head)),
        gradient_(scratch),
        states_(gradient_ + s_.state_size()),
        residuals_(states_ + (DeltaRuleShape::kChunk + 1) * s_.state_size()),
        decays_(residuals_ + DeltaRuleShape::kChunk * s_.dv) {}

  void run() const {
    fill_state(s_, a_.dfinal ? a_.dfinal + head_ * s_.state_size() : nullptr, gradient_);
    for (int64_t chunk = s_.chunks() - 1; chunk >= 0; --chunk) {
      const int64_t first = chunk * DeltaRuleShape::kChunk, end = std::min(s_.T, first + DeltaRuleShape::kChunk);
      std::copy_n(a_.states + (head_ * s_.chunks() + chunk) * s_.state_size(), s_.state_size(), states_);
      for (int64_t t = first; t < end; ++t) {
        const int64_t i = t - first;
        rule_.decays(t, decays_ + i * s_.f);
        rule_.step(rule_.token(t, decays_ + i * s_.f), state(i), state(i + 1), residuals_ + i * s_.dv, nullptr);
      }
      for (int64_t t = end - 1; t >= first; --t) pull_back(t, t - first);
    }
    if (a_.dinitial) std::copy_n(gradient_, s_.state_size(), a_.dinitial + head_ * s_.state_size());
  }

 private:
  using Vec = simd::Vec<T>;

  T* state(int64_t i) const { return states_ + i * s_.state_size(); }

  // Where one token's part of the pass reads and writes: pointers by value, as in step_columns.
  struct Place {
    int64_t f, dv_row;
    Token<T> x;
    const T *dy, *before, *after, *residual;  // states before and after the token
    T *gradient, *dq, *dk, *dv, *ddecay;      // ddecay [f] or null
  };
  struct Sums {
    T beta = 0, decay = 0;
  };

  void pull_back(int64_t t, int64_t i) const {
    const bool by_feature = a_.dlog_decay && s_.decay == Decay::feature;
    const Place place{.f = s_.f,
                      .dv_row = s_.dv,
                      .x = rule_.token(t, decays_ + i * s_.f),
                      .dy = dy_[t],
                      .before = state(i),
                      .after = state(i + 1),
                      .residual = residuals_ + i * s_.dv,
                      .gradient = gradient_,
                      .dq = dq_[t],
                      .dk = dk_[t],
                      .dv = dv_[t],
                      .ddecay = by_feature ? a_.dlog_decay + (head_ * s_.T + t) * s_.f : nullptr};
    std::fill_n(place.dq, s_.f, T(0));
    std::fill_n(place.dk, s_.f, T(0));
    if (by_feature) std::fill_n(place.ddecay, s_.f, T(0));
    Sums sums;
    for_columns<T>(s_.dv, [&]<int V, bool partial>(int64_t column, int64_t count) {
      pull_back_columns(Columns<T, V, partial>{column, count}, place, sums);
    });
    if (a_.dlog_decay && s_.decay == Decay::head) a_.dlog_decay[head_ * s_.T + t] = sums.decay;
    if (a_.dbeta) a_.dbeta[head_ * s_.T + t] = sums.beta;
  }

  template <int V, bool partial>
  static void pull_back_columns(Columns<T, V, partial> columns, Place p, Sums& sums) {
    Vec dv[V], w[V], decayed_sum(T(0));
    add_cotangent(columns, p, dv);
    const bool corrects = p.x.beta != nullptr;
    const T beta = corrects ? *p.x.beta : T(1);
    for (int v = 0; v < V; ++v) {
      w[v] = columns.load(p.residual, v);
      sums.beta += reduce_add(dv[v] * w[v]);
      dv[v] *= beta;
      w[v] *= beta;
      columns.store(dv[v], p.dv, v);
    }
    for (int64_t d = 0; d < p.f; ++d) {
      const T decay = p.x.decay[d], key = p.x.k[d];
      Vec dk(T(0)), decayed(T(0));
      for (int v = 0; v < V; ++v) {
        T* const row = p.gradient + d * p.dv_row;
        const Vec before = columns.load(p.before + d * p.dv_row, v);
        Vec g = columns.load(row, v);
        dk += g * w[v];
        if (corrects) {
          dk -= before * decay * dv[v];
          g -= dv[v] * key;
        }
        g *= decay;
        decayed += g * before;
        columns.store(g, row, v);
      }
      p.dk[d] += reduce_add(dk);
      if (p.ddecay) p.ddecay[d] += reduce_add(decayed);
      decayed_sum += decayed;
    }
    sums.decay += reduce_add(decayed_sum);
  }

  // G += q dy^T, dq += S dy and dw = G^T k, for some columns.
  template <int V, bool partial>
  static void add_cotangent(Columns<T, V, partial> columns, const Place& p, Vec (&dw)[V]) {
    Vec dy[V], sum[V];
    for (int v = 0; v < V; ++v) dy[v] = columns.load(p.dy, v), sum[v] = Vec(T(0));
    for (int64_t d = 0; d < p.f; ++d) {
      const T query = p.x.q[d], key = p.x.k[d];
      T* const row = p.gradient + d * p.dv_row;
      const T* const after = p.after + d * p.dv_row;
      Vec dq(T(0));
      for (int v = 0; v < V; ++v) {
        const Vec g = columns.load(row, v) + dy[v] * query;
        columns.store(g, row, v);
        sum[v] += g * key;
        dq += columns.load(after, v) * dy[v];
      }
      p.dq[d] += reduce_add(dq);
    }
    for (int v = 0; v < V; ++v) dw[v] = sum[v];
  }

  const GatedDeltaRuleBwd<T>& a_;
  const DeltaRuleShape& s_;
  int64_t head_;
  DeltaRule<T> rule_;
  HeadRows<const T> dy_;
  HeadRows<T> dq_, dk_, dv_;
  T *gradient_, *states_, *residuals_, *decays_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const GatedDeltaRuleFwd<T>& a) {
  for_each_head(cpu, a, [&](int64_t head, T* scratch) { forward(a, head, scratch); });
}

template <class T>
void run(Cpu cpu, const GatedDeltaRuleBwd<T>& a) {
  for_each_head(cpu, a, [&](int64_t head, T* scratch) { Backward<T>(a, head, scratch).run(); });
}

template void run(Cpu, const GatedDeltaRuleFwd<float>&);
template void run(Cpu, const GatedDeltaRuleFwd<double>&);
template void run(Cpu, const GatedDeltaRuleBwd<float>&);
template void run(Cpu, const GatedDeltaRuleBwd<double>&);

}  // namespace margay::kernels
