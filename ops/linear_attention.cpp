#include "ops/linear_attention.h"

#include <array>

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"linear_attention", samples};

constexpr LinearAttentionOptions kPlain{}, kElu{FeatureMap::elu1, true, 1e-3},
    kSoftmax{FeatureMap::softmax, true, 1e-3}, kTaylor{FeatureMap::taylor2, true, 1e-3},
    kTaylorSum{FeatureMap::taylor2, false, 0};

struct SampleCase {
  const char* name;
  int64_t B, H, T, f, dv;
  LinearAttentionOptions options;
  bool stretch = false;  // continues a state, and its own is an output
};

Sample sample_of(const SampleCase& c) {
  Sample sample;
  sample.name = c.name;
  sample.inputs = {real({c.B, c.H, c.T, c.f}), real({c.B, c.H, c.T, c.f}), real({c.B, c.H, c.T, c.dv})};
  const bool taylor = c.options.map == FeatureMap::taylor2;
  const int64_t features = taylor ? 1 + c.f + c.f * (c.f + 1) / 2 : c.f;
  // Sums of features that keep the normaliser away from 0.
  if (c.stretch) sample.inputs.push_back(real({c.B, c.H, features, c.dv + (c.options.normalise ? 1 : 0)}, 1, 2));
  sample.call = [c](const Tensors& in) {
    if (!c.stretch) return Tensors{linear_attention(in[0], in[1], in[2], c.options)};
    const auto [y, state] = linear_attention_stretch(in[0], in[1], in[2], in[3], c.options);
    return Tensors{y, state};
  };
  return sample;
}

Samples samples() {
  constexpr std::array cases = {
      SampleCase{"identity", 2, 3, 7, 5, 4, kPlain},
      SampleCase{"elu1", 2, 3, 7, 5, 5, kElu},
      SampleCase{"softmax", 2, 2, 7, 5, 3, kSoftmax},
      SampleCase{"taylor2", 2, 2, 7, 3, 4, kTaylor},
      SampleCase{"taylor2, no normaliser", 1, 2, 9, 4, 4, kTaylorSum},
      SampleCase{"one token", 2, 1, 1, 3, 2, kElu},
      SampleCase{"one feature", 1, 2, 5, 1, 1, kTaylor},
      SampleCase{"wide rows", 1, 1, 5, 17, 33, kElu},
      SampleCase{"several chunks", 1, 1, 130, 2, 1, kPlain},
      SampleCase{"several chunks, elu1", 1, 1, 130, 1, 2, kElu},
      SampleCase{"several chunks, softmax", 1, 1, 130, 2, 1, kSoftmax},
      SampleCase{"several chunks, taylor2", 1, 1, 130, 1, 2, kTaylor},
      SampleCase{"stretch", 1, 2, 5, 3, 2, kPlain, true},
      SampleCase{"stretch, elu1", 2, 1, 5, 3, 2, kElu, true},
      SampleCase{"stretch, taylor2", 1, 2, 5, 3, 2, kTaylor, true},
      SampleCase{"stretch, several chunks, taylor2", 1, 1, 70, 2, 1, kTaylor, true},
      SampleCase{"many heads, one chunk", 4, 4, 3, 2, 3, kTaylor, true},
      SampleCase{"no tokens", 2, 2, 0, 3, 2, kElu},
      SampleCase{"no tokens in a stretch", 2, 1, 0, 3, 2, kElu, true},
      SampleCase{"no heads", 2, 0, 3, 4, 2, kTaylor, true},
      SampleCase{"no features", 1, 2, 3, 0, 2, kElu},
      SampleCase{"no values", 1, 2, 3, 2, 0, kElu, true},
  };
  Samples all;
  for (const SampleCase& c : cases) all.push_back(sample_of(c));
  return all;
}

kernels::LinearAttentionShape check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& initial,
                                    const LinearAttentionOptions& options) {
  op.require_float("q", q);
  op.require(q.ndim() == 4, "q", q, "[B,H,T,f]");
  const bool taylor = options.map == FeatureMap::taylor2;
  op.require(!taylor || q.dim(3) > 0, "q", q, "[B,H,T,f] with f > 0 for the features of taylor2");
  op.require_like("k", k, "q", q);
  op.require(k.shape() == q.shape(), "k", k, "of the shape of q {}", q);
  op.require_like("v", v, "q", q);
  op.require(v.ndim() == 4 && v.shape().with(3, q.dim(3)) == q.shape(), "v", v, "[B,H,T,dv] for q {}", q);
  op.require(options.eps >= 0, "eps", options.eps, "0 or more");
  const kernels::LinearAttentionShape s{q.dim(0), q.dim(1),    q.dim(2),         q.dim(3),
                                        v.dim(3), options.map, options.normalise};
  if (initial.defined()) {
    op.require(initial.dtype() == acc_dtype(q.dtype()) && initial.device() == q.device(), "initial", initial,
               "of the dtype of sums and on the device of q {}", q);
    op.require(initial.shape() == Shape{s.B, s.H, s.features(), s.state_columns()}, "initial", initial,
               "[{},{},{},{}] for q {} and v {}", s.B, s.H, s.features(), s.state_columns(), q, v);
  }
  return s;
}

// What forward and backward have in common.
struct Call {
  kernels::LinearAttentionShape shape;
  Saved q, k, v, initial;

  template <class T, class Args>
  void fill(Args& a) const {
    a.shape = shape;
    a.q = q->strided<T>().data;
    a.k = k->strided<T>().data;
    a.v = v->strided<T>().data;
    a.q_strides = head_strides(q);
    a.k_strides = head_strides(k);
    a.v_strides = head_strides(v);
    a.initial = initial->defined() ? initial->data<acc_t<T>>() : nullptr;
  }
};

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}

Tensors pull_back(const Call& call, const Tensor& y, const Tensor& inverse, const Tensor& states, const Tensor& dy,
                  const Tensor& dfinal, bool want_dinitial) {
  const kernels::LinearAttentionShape& s = call.shape;
  const DType sums = acc_dtype(y.dtype());
  const Tensors rows = packed_heads(s.B, s.H, s.T, {s.f, s.f, s.dv}, y.dtype(), y.device());
  const Tensor dinitial = want_dinitial ? empty_like(call.initial) : Tensor();
  const Tensor dstates = empty({s.states_size(y.device().type)}, sums, y.device());
  Tensor workspace;
  op.launch<kernels::LinearAttentionBwd>(y, [&]<class T>(kernels::LinearAttentionBwd<T>& a) {
    call.fill<T>(a);
    a.y = y.strided<T>().data;
    a.dy = dy.strided<T>().data;
    a.y_strides = head_strides(y);
    a.dy_strides = head_strides(dy);
    a.states = states.data<acc_t<T>>();
    a.inverse = data_or_null<acc_t<T>>(inverse);
    a.dfinal = data_or_null<acc_t<T>>(dfinal);
    a.dq = rows[0].strided<T>().data;
    a.dk = rows[1].strided<T>().data;
    a.dv = rows[2].strided<T>().data;
    a.dq_strides = head_strides(rows[0]);
    a.dk_strides = head_strides(rows[1]);
    a.dv_strides = head_strides(rows[2]);
    a.dstates = dstates.data<acc_t<T>>();
    a.dinitial = data_or_null<acc_t<T>>(dinitial);
    workspace = empty({a.workspace_size(y.device().type)}, sums, y.device());
    a.workspace = workspace.data<acc_t<T>>();
  });
  return {rows[0], rows[1], rows[2], dinitial};
}

LinearAttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& initial, bool keep_state,
                             const LinearAttentionOptions& options) {
  const kernels::LinearAttentionShape s = check(q, k, v, initial, options);
  const Call call{s, Saved(with_contiguous_rows(q)), Saved(with_contiguous_rows(k)), Saved(with_contiguous_rows(v)),
                  Saved(initial.defined() ? initial.contiguous() : initial)};
  const Device device = q.device();
  const DType sums = acc_dtype(q.dtype());
  const Tensor y = heads_view(empty({s.B, s.T, 1, s.H, s.dv}, q.dtype(), device));
  const Tensor inverse = s.normalise ? empty({s.B, s.H, s.T}, sums, device) : Tensor();
  const Tensor states = empty({s.states_size(device.type)}, sums, device);
  const Tensor final = keep_state ? empty({s.B, s.H, s.features(), s.state_columns()}, sums, device) : Tensor();
  Tensor workspace;
  op.launch<kernels::LinearAttentionFwd>(q, [&]<class T>(kernels::LinearAttentionFwd<T>& a) {
    call.fill<T>(a);
    a.eps = options.eps;
    a.y = y.strided<T>().data;
    a.y_strides = head_strides(y);
    a.inverse = data_or_null<acc_t<T>>(inverse);
    a.states = states.data<acc_t<T>>();
    a.final = data_or_null<acc_t<T>>(final);
    workspace = empty({a.workspace_size(device.type)}, sums, device);
    a.workspace = workspace.data<acc_t<T>>();
  });
  Tensors outputs{y};
  if (keep_state) outputs.push_back(final);
  outputs = op.record(
      outputs, {q, k, v, initial},
      [call, y = Saved(y), inverse, states, keep_state](const VjpContext& context) {
        const Tensor& cotangent = context.cotangent(0);
        const Tensor dy = cotangent.defined() ? with_contiguous_rows(cotangent) : zeros_like(y);
        const Tensor dfinal = keep_state ? context.cotangent(1) : Tensor();
        return pull_back(call, y, inverse, states, dy, dfinal.defined() ? dfinal.contiguous() : dfinal,
                         context.wanted(3));
      },
      CotangentLayout::strided);
  return {outputs[0], keep_state ? outputs[1] : Tensor()};
}

}  // namespace

Tensor linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttentionOptions& options) {
  return attend(q, k, v, {}, false, options).y;
}

LinearAttentionResult linear_attention_stretch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& initial,
                                               const LinearAttentionOptions& options) {
  return attend(q, k, v, initial, true, options);
}

}  // namespace margay
