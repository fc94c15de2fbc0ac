#include "ops/selected_attention.h"

#include <array>

#include "engine/launch.h"
#include "ops/attention_inputs.h"
#include "ops/index.h"

namespace margay {
namespace {

Samples samples();
const Op op{"selected_attention", samples};

struct SampleCase {
  const char* name;
  int64_t B, H, L, dh, R;
  int64_t window = 0;
  double dropout = 0;
  bool beta = false;
};

Sample sample_of(const SampleCase& c) {
  Sample sample;
  sample.name = c.name;
  const Shape tokens{c.B, c.H, c.L, c.dh};
  sample.inputs = {real(tokens, -2, 2), real(tokens, -2, 2), real(tokens), ids({c.R}, -1, c.B * c.L)};
  if (c.beta) sample.inputs.push_back(real({c.H}));
  sample.call = [c](const Tensors& in) {
    AttentionOptions options{.scale = 0.4, .window = c.window, .dropout = c.dropout, .stream = 5};
    if (c.dropout > 0) options.rng = from_values<int64_t>({11, 3}, {2}, in[0].device());
    return Tensors{selected_attention(in[0], in[1], in[2], in[3], c.beta ? in[4] : Tensor(), options)};
  };
  return sample;
}

Samples samples() {
  constexpr std::array cases = {
      SampleCase{"one token", 1, 1, 1, 3, 1},
      SampleCase{"odd sizes, two heads", 2, 2, 7, 5, 3},
      SampleCase{"rows that come again", 2, 1, 3, 4, 9},
      SampleCase{"several tiles of keys", 1, 2, 150, 3, 5},
      SampleCase{"several tiles of queries", 1, 1, 20, 2, 70},
      SampleCase{"many keys", 1, 1, 600, 2, 3},
      SampleCase{"window, beta", 1, 2, 90, 2, 9, 20, 0, true},
      SampleCase{"window of two keys", 2, 1, 35, 2, 40, 1},
      SampleCase{"wide heads", 1, 1, 9, 81, 4},
      SampleCase{"dropout, beta", 2, 2, 9, 3, 5, 0, 0.3, true},
      SampleCase{"dropout, window, several tiles", 1, 1, 70, 2, 66, 66, 0.2},
      SampleCase{"no rows", 2, 2, 3, 4, 0, 0, 0, true},
      SampleCase{"no tokens", 2, 2, 0, 4, 3},
      SampleCase{"heads of size 0", 1, 2, 3, 0, 2},
  };
  Samples all;
  for (const SampleCase& c : cases) all.push_back(sample_of(c));
  return all;
}

// What forward and backward have in common.
struct Call {
  AttentionInputs in;
  Saved rows;

  /// Returns the memory of a.lists.
  template <class T>
  Tensor fill(kernels::SelectedAttentionCall<T>& a) const {
    in.fill<T>(a);
    a.rows = rows->data<int32_t>();
    a.R = rows->numel();
    const Tensor lists = empty({a.lists_size()}, DType::i32, rows->device());
    a.lists = lists.data<int32_t>();
    return lists;
  }
};

Tensors pull_back(const Call& call, const Tensor& y, const Tensor& lse, const Tensor& dy, bool want_dbeta) {
  const kernels::AttentionShape& s = call.in.shape;
  const Tensor packed = empty({s.B, s.Lk, 3, s.H, s.dh}, y.dtype(), y.device());
  const Tensor dq = heads_view(packed), dk = heads_view(packed, 1), dv = heads_view(packed, 2);
  const Tensor dbeta = want_dbeta ? empty_like(call.in.beta) : Tensor();
  Tensor lists, workspace;
  op.launch<kernels::SelectedAttentionBwd>(y, [&]<class T>(kernels::SelectedAttentionBwd<T>& a) {
    lists = call.fill<T>(a);
    a.y = y.data<T>();
    a.dy = dy.data<T>();
    a.lse = lse.data<acc_t<T>>();
    a.dq = dq.strided<T>().data;
    a.dk = dk.strided<T>().data;
    a.dv = dv.strided<T>().data;
    a.dq_strides = head_strides(dq);
    a.dk_strides = head_strides(dk);
    a.dv_strides = head_strides(dv);
    a.dbeta = dbeta.defined() ? dbeta.data<T>() : nullptr;
    workspace = empty({a.workspace_size(y.device().type)}, acc_dtype(y.dtype()), y.device());
    a.workspace = workspace.data<acc_t<T>>();
  });
  return {dq, dk, dv, Tensor(), dbeta};
}

}  // namespace

Tensor selected_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& rows, const Tensor& beta,
                          const AttentionOptions& options) {
  const AttentionInputs in(op, q, k, v, beta, options);
  const kernels::AttentionShape& shape = in.shape;
  op.require(k.shape() == q.shape(), "k", k, "of the shape of q {}", q);
  op.require(rows.defined() && rows.ndim() == 1, "rows", rows, "[R]");
  const std::array inputs{q, k, v, rows, beta};
  const Call call{in, Saved(checked_index(op, "rows", rows, q, shape.B * shape.Lk, true))};
  const DType sums = acc_dtype(q.dtype());
  const Tensor y = empty({rows.dim(0), shape.H, shape.dh}, q.dtype(), q.device());
  const Tensor lse = Graph::recording(inputs) ? empty({rows.dim(0), shape.H}, sums, q.device()) : Tensor();
  Tensor lists, workspace;
  op.launch<kernels::SelectedAttentionFwd>(q, [&]<class T>(kernels::SelectedAttentionFwd<T>& a) {
    lists = call.fill<T>(a);
    a.y = y.data<T>();
    a.lse = lse.defined() ? lse.data<acc_t<T>>() : nullptr;
    workspace = empty({a.workspace_size(q.device().type)}, sums, q.device());
    a.workspace = workspace.data<acc_t<T>>();
  });
  return op.record(y, inputs, [call, y = Saved(y), lse](const VjpContext& context) {
    return pull_back(call, y, lse, context.cotangent(), context.wanted(4));
  });
}

}  // namespace margay
