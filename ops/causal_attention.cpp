#include "ops/causal_attention.h"

#include <array>

#include "engine/launch.h"
#include "ops/attention_inputs.h"

namespace margay {
namespace {

Samples samples();
const Op op{"causal_attention", samples};

struct SampleCase {
  const char* name;
  int64_t B, H, Lq, Lk, dh;
  int64_t window = 0;
  double dropout = 0;
  bool beta = false;
};

Sample sample_of(const SampleCase& c) {
  Sample sample;
  sample.name = c.name;
  const Shape keys{c.B, c.H, c.Lk, c.dh};
  sample.inputs = {real({c.B, c.H, c.Lq, c.dh}, -2, 2), real(keys, -2, 2), real(keys)};
  if (c.beta) sample.inputs.push_back(real({c.H}));
  sample.call = [c](const Tensors& in) {
    AttentionOptions options{.scale = 0.4, .window = c.window, .dropout = c.dropout, .stream = 5};
    if (c.dropout > 0) options.rng = from_values<int64_t>({11, 3}, {2}, in[0].device());
    return Tensors{causal_attention(in[0], in[1], in[2], c.beta ? in[3] : Tensor(), options)};
  };
  return sample;
}

Samples samples() {
  constexpr std::array cases = {
      SampleCase{"one token", 2, 1, 1, 1, 3},
      SampleCase{"two tokens, two heads", 1, 2, 2, 2, 8},
      SampleCase{"odd sizes", 2, 3, 7, 7, 5},
      SampleCase{"beta", 2, 2, 7, 7, 4, 0, 0, true},
      SampleCase{"several vectors of queries", 1, 2, 33, 33, 4},
      SampleCase{"several tiles", 1, 1, 70, 70, 3},
      SampleCase{"several tiles, window", 1, 1, 70, 70, 2, 20},
      SampleCase{"window of two keys, beta", 1, 3, 35, 35, 2, 1, 0, true},
      SampleCase{"wide heads", 1, 1, 9, 9, 81},
      SampleCase{"queries after cached keys", 2, 2, 5, 70, 3},
      SampleCase{"queries after cached keys, window, beta", 1, 2, 20, 70, 2, 33, 0, true},
      SampleCase{"one query, many keys", 1, 1, 1, 4100, 1},
      SampleCase{"three queries, many keys, window, dropout, beta", 2, 2, 3, 700, 3, 600, 0.2, true},
      SampleCase{"two queries, wide heads", 1, 1, 2, 20, 300},
      SampleCase{"dropout", 2, 2, 7, 9, 3, 0, 0.3},
      SampleCase{"dropout, window, beta, several tiles", 1, 1, 70, 70, 2, 66, 0.2, true},
      SampleCase{"no tokens", 2, 2, 0, 0, 4},
      SampleCase{"no queries", 2, 2, 0, 3, 4, 0, 0, true},
      SampleCase{"no heads", 2, 0, 3, 3, 4},
      SampleCase{"heads of size 0", 1, 2, 3, 3, 0},
  };
  Samples all;
  for (const SampleCase& c : cases) all.push_back(sample_of(c));
  return all;
}

Tensors pull_back(const AttentionInputs& in, Precision precision, const Tensor& y, const Tensor& lse,
                  const Tensor& cotangent, bool want_dbeta) {
  const kernels::AttentionShape& s = in.shape;
  const Tensor dy = with_contiguous_rows(cotangent);
  const DType dtype = y.dtype();
  const Device device = y.device();
  const bool together = s.Lq == s.Lk;
  const Tensor packed = empty({s.B, s.Lk, together ? 3 : 2, s.H, s.dh}, dtype, device);
  const Tensor dq = heads_view(together ? packed : empty({s.B, s.Lq, 1, s.H, s.dh}, dtype, device));
  const Tensor dk = heads_view(packed, together ? 1 : 0), dv = heads_view(packed, together ? 2 : 1);
  const Tensor dbeta = want_dbeta ? empty_like(in.beta) : Tensor();
  Tensor workspace;
  op.launch<kernels::CausalAttentionBwd>(y, [&]<class T>(kernels::CausalAttentionBwd<T>& a) {
    in.fill<T>(a);
    a.precision = precision;
    a.y = y.strided<T>().data;
    a.dy = dy.strided<T>().data;
    a.y_strides = head_strides(y);
    a.dy_strides = head_strides(dy);
    a.lse = lse.data<acc_t<T>>();
    a.dq = dq.strided<T>().data;
    a.dk = dk.strided<T>().data;
    a.dv = dv.strided<T>().data;
    a.dq_strides = head_strides(dq);
    a.dk_strides = head_strides(dk);
    a.dv_strides = head_strides(dv);
    a.dbeta = dbeta.defined() ? dbeta.data<T>() : nullptr;
    workspace = empty({a.workspace_size(device.type)}, acc_dtype(dtype), device);
    a.workspace = workspace.data<acc_t<T>>();
  });
  return {dq, dk, dv, dbeta};
}

}  // namespace

Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                        const AttentionOptions& options) {
  const AttentionInputs in(op, q, k, v, beta, options);
  const kernels::AttentionShape& shape = in.shape;
  const Precision precision = product_precision();
  const std::array inputs{q, k, v, beta};
  const DType sums = acc_dtype(q.dtype());
  const Tensor y = heads_view(empty({shape.B, shape.Lq, 1, shape.H, shape.dh}, q.dtype(), q.device()));
  const Tensor lse = Graph::recording(inputs) ? empty({shape.B, shape.H, shape.Lq}, sums, q.device()) : Tensor();
  Tensor workspace;
  op.launch<kernels::CausalAttentionFwd>(q, [&]<class T>(kernels::CausalAttentionFwd<T>& a) {
    in.fill<T>(a);
    a.precision = precision;
    a.y = y.strided<T>().data;
    a.y_strides = head_strides(y);
    a.lse = lse.defined() ? lse.data<acc_t<T>>() : nullptr;
    workspace = empty({a.workspace_size(q.device().type)}, sums, q.device());
    a.workspace = workspace.data<acc_t<T>>();
  });
  return op.record(
      y, inputs,
      [in, precision, y = Saved(y), lse](const VjpContext& context) {
        return pull_back(in, precision, y, lse, context.cotangent(), context.wanted(3));
      },
      CotangentLayout::strided);
}

}  // namespace margay
