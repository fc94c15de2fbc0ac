#pragma once
#include <algorithm>

#include "ops/causal_attention.h"

namespace margay {

/// The arguments of causal_attention and selected_attention: checked, and as the kernels of both directions read them.
struct AttentionInputs {
  kernels::AttentionShape shape;
  Saved q, k, v, beta, rng;
  double scale, dropout;
  uint64_t stream;

  /// q [B,H,Lq,dh], k and v [B,H,Lk,dh] with Lk >= Lq, beta undefined or [H]. Throws OpError for what does not fit.
  AttentionInputs(const Op& op, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& head_scales,
                  const AttentionOptions& options)
      : shape(checked(op, query, key, value, head_scales, options)),
        q(with_contiguous_rows(query)),
        k(with_contiguous_rows(key)),
        v(with_contiguous_rows(value)),
        beta(head_scales.defined() ? head_scales.contiguous() : head_scales),
        rng(options.dropout > 0 ? options.rng.contiguous() : Tensor()),
        scale(options.scale),
        dropout(options.dropout),
        stream(options.stream) {}

  template <class T, class Args>
  void fill(Args& a) const {
    a.shape = shape;
    a.q = q->strided<T>().data;
    a.k = k->strided<T>().data;
    a.v = v->strided<T>().data;
    a.q_strides = head_strides(q);
    a.k_strides = head_strides(k);
    a.v_strides = head_strides(v);
    a.scale = scale;
    a.beta = beta->defined() ? beta->data<T>() : nullptr;
    a.dropout = {dropout, dropout > 0 ? rng->data<int64_t>() : nullptr, stream};
  }

 private:
  static kernels::AttentionShape checked(const Op& op, const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& beta, const AttentionOptions& options) {
    op.require_float("q", q);
    op.require(q.ndim() == 4, "q", q, "[B,H,Lq,dh]");
    op.require_like("k", k, "q", q);
    op.require(k.ndim() == 4 && k.shape().with(2, q.dim(2)) == q.shape() && k.dim(2) >= q.dim(2), "k", k,
               "[B,H,Lk,dh] with Lk >= Lq for q {}", q);
    op.require_like("v", v, "q", q);
    op.require(v.shape() == k.shape(), "v", v, "of the shape of k {}", k);
    if (beta.defined()) {
      op.require_like("beta", beta, "q", q);
      op.require(beta.shape() == Shape{q.dim(1)}, "beta", beta, "[H] for q {}", q);
    }
    op.require(options.window >= 0, "window", options.window, "0 or more");
    require_attention_dropout(op, options.dropout, options.rng, q);
    const int64_t Lk = k.dim(2);
    return {q.dim(0), q.dim(1), q.dim(2), Lk, q.dim(3), options.window > 0 ? std::min(options.window, Lk) : Lk};
  }
};

}  // namespace margay
