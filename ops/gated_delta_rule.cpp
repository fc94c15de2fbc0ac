#include "ops/gated_delta_rule.h"

#include <array>

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"gated_delta_rule", samples};

using kernels::Decay;

struct SampleCase {
  const char* name;
  int64_t B, H, T, f, dv;
  Decay decay = Decay::none;
  bool beta = false, stretch = false;  // a stretch continues a state, and its own is an output
};

Sample sample_of(const SampleCase& c) {
  Sample sample;
  sample.name = c.name;
  sample.inputs = {real({c.B, c.H, c.T, c.f}, -0.7, 0.7), real({c.B, c.H, c.T, c.f}, -0.7, 0.7),
                   real({c.B, c.H, c.T, c.dv})};
  if (c.decay == Decay::head) sample.inputs.push_back(real({c.B, c.H, c.T}, -1, 0));
  if (c.decay == Decay::feature) sample.inputs.push_back(real({c.B, c.H, c.T, c.f}, -1, 0));
  if (c.beta) sample.inputs.push_back(real({c.B, c.H, c.T}, 0, 1));
  if (c.stretch) sample.inputs.push_back(real({c.B, c.H, c.f, c.dv}));
  sample.call = [c](const Tensors& in) {
    size_t next = 3;
    const Tensor decay = c.decay == Decay::none ? Tensor() : in[next++], beta = c.beta ? in[next++] : Tensor();
    if (!c.stretch) return Tensors{gated_delta_rule(in[0], in[1], in[2], decay, beta)};
    const auto [y, state] = gated_delta_rule_stretch(in[0], in[1], in[2], decay, beta, in[next]);
    return Tensors{y, state};
  };
  return sample;
}

Samples samples() {
  constexpr std::array cases = {
      SampleCase{"sum", 2, 3, 7, 5, 4},
      SampleCase{"one decay", 2, 2, 7, 5, 3, Decay::head},
      SampleCase{"a decay for each feature", 2, 2, 7, 5, 3, Decay::feature},
      SampleCase{"delta rule", 1, 2, 9, 4, 5, Decay::none, true},
      SampleCase{"delta rule, one decay", 2, 1, 9, 4, 5, Decay::head, true},
      SampleCase{"delta rule, a decay for each feature", 1, 2, 5, 4, 5, Decay::feature, true},
      SampleCase{"one token", 2, 1, 1, 3, 2, Decay::feature, true},
      SampleCase{"one feature", 1, 2, 5, 1, 1, Decay::head, true},
      SampleCase{"several chunks", 1, 1, 70, 2, 3, Decay::feature, true},
      SampleCase{"wide values", 1, 1, 3, 2, 91, Decay::head, true},
      SampleCase{"wide features", 1, 1, 3, 19, 2, Decay::feature, true},
      SampleCase{"stretch", 1, 2, 5, 3, 2, Decay::head, true, true},
      SampleCase{"stretch of several chunks", 1, 1, 70, 2, 2, Decay::feature, false, true},
      SampleCase{"no tokens", 2, 2, 0, 3, 2, Decay::head, true},
      SampleCase{"no tokens in a stretch", 2, 1, 0, 3, 2, Decay::feature, true, true},
      SampleCase{"no heads", 2, 0, 3, 4, 2, Decay::head, true, true},
      SampleCase{"no features", 1, 2, 3, 0, 2, Decay::feature, true},
      SampleCase{"no values", 1, 2, 3, 2, 0, Decay::head, true},
  };
  Samples all;
  for (const SampleCase& c : cases) all.push_back(sample_of(c));
  return all;
}

kernels::DeltaRuleShape check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                              const Tensor& beta, const Tensor& initial) {
  op.require_float("q", q);
  op.require(q.ndim() == 4, "q", q, "[B,H,T,f]");
  op.require_like("k", k, "q", q);
  op.require(k.shape() == q.shape(), "k", k, "of the shape of q {}", q);
  op.require_like("v", v, "q", q);
  op.require(v.ndim() == 4 && v.shape().with(3, q.dim(3)) == q.shape(), "v", v, "[B,H,T,dv] for q {}", q);
  const Shape tokens = q.shape().without(3);
  Decay decay = Decay::none;
  if (log_decay.defined()) {
    op.require_like("log_decay", log_decay, "q", q);
    op.require(log_decay.shape() == tokens || log_decay.shape() == q.shape(), "log_decay", log_decay,
               "[B,H,T] or [B,H,T,f] for q {}", q);
    decay = log_decay.ndim() == 3 ? Decay::head : Decay::feature;
  }
  if (beta.defined()) {
    op.require_like("beta", beta, "q", q);
    op.require(beta.shape() == tokens, "beta", beta, "[B,H,T] for q {}", q);
  }
  const kernels::DeltaRuleShape s{q.dim(0), q.dim(1), q.dim(2), q.dim(3), v.dim(3), decay};
  if (initial.defined()) {
    op.require(initial.dtype() == acc_dtype(q.dtype()) && initial.device() == q.device(), "initial", initial,
               "of the dtype of sums and on the device of q {}", q);
    op.require(initial.shape() == Shape{s.B, s.H, s.f, s.dv}, "initial", initial, "[B,H,f,dv] for q {} and v {}", q, v);
  }
  return s;
}

// What forward and backward have in common.
struct Call {
  kernels::DeltaRuleShape shape;
  Saved q, k, v, log_decay, beta, initial;

  template <class T>
  void fill(kernels::DeltaRuleInputs<T>& a) const {
    const auto set = [](const Tensor& x, const T*& data, kernels::HeadStrides& strides) {
      data = x.defined() ? x.strided<T>().data : nullptr;
      if (x.defined()) strides = head_strides(x);
    };
    a.shape = shape;
    set(q, a.q, a.q_strides);
    set(k, a.k, a.k_strides);
    set(v, a.v, a.v_strides);
    set(log_decay, a.log_decay, a.decay_strides);
    set(beta, a.beta, a.beta_strides);
    a.initial = initial->defined() ? initial->data<acc_t<T>>() : nullptr;
  }
};

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}

Tensors pull_back(const Call& call, const Tensor& states, const Tensor& dy, const Tensor& dfinal,
                  const VjpContext& context) {
  const kernels::DeltaRuleShape& s = call.shape;
  const DType dtype = dy.dtype(), sums = acc_dtype(dtype);
  const Device device = dy.device();
  const Tensors rows = packed_heads(s.B, s.H, s.T, {s.f, s.f, s.dv}, dtype, device);
  const auto gradient = [&](size_t input, const Tensor& like) {
    return context.wanted(input) ? empty(like.shape(), like.dtype(), device) : Tensor();
  };
  const Tensor dlog_decay = gradient(3, call.log_decay), dbeta = gradient(4, call.beta),
               dinitial = gradient(5, call.initial);
  Tensor workspace;
  op.launch<kernels::GatedDeltaRuleBwd>(dy, [&]<class T>(kernels::GatedDeltaRuleBwd<T>& a) {
    call.fill<T>(a);
    a.dy = dy.strided<T>().data;
    a.dy_strides = head_strides(dy);
    a.states = states.data<acc_t<T>>();
    a.dfinal = data_or_null<acc_t<T>>(dfinal);
    a.dq = rows[0].strided<T>().data;
    a.dk = rows[1].strided<T>().data;
    a.dv = rows[2].strided<T>().data;
    a.dq_strides = head_strides(rows[0]);
    a.dk_strides = head_strides(rows[1]);
    a.dv_strides = head_strides(rows[2]);
    a.dlog_decay = data_or_null<T>(dlog_decay);
    a.dbeta = data_or_null<T>(dbeta);
    a.dinitial = data_or_null<acc_t<T>>(dinitial);
    workspace = empty({a.workspace_size(device.type)}, sums, device);
    a.workspace = workspace.data<acc_t<T>>();
  });
  return {rows[0], rows[1], rows[2], dlog_decay, dbeta, dinitial};
}

GatedDeltaRuleResult attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                            const Tensor& beta, const Tensor& initial, bool keep_state) {
  const kernels::DeltaRuleShape s = check(q, k, v, log_decay, beta, initial);
  const std::array inputs{q, k, v, log_decay, beta, initial};
  const Call call{s,
                  Saved(with_contiguous_rows(q)),
                  Saved(with_contiguous_rows(k)),
                  Saved(with_contiguous_rows(v)),
                  Saved(s.decay == Decay::feature ? with_contiguous_rows(log_decay) : log_decay),
                  Saved(beta),
                  Saved(initial.defined() ? initial.contiguous() : initial)};
  const Device device = q.device();
  const DType sums = acc_dtype(q.dtype());
  const Tensor y = heads_view(empty({s.B, s.T, 1, s.H, s.dv}, q.dtype(), device));
  const bool keeps_states = Graph::recording(inputs) || device.type == DeviceType::cuda;
  const Tensor states = keeps_states ? empty({s.states_size(beta.defined(), device.type)}, sums, device) : Tensor();
  const Tensor final = keep_state ? empty({s.B, s.H, s.f, s.dv}, sums, device) : Tensor();
  Tensor workspace;
  op.launch<kernels::GatedDeltaRuleFwd>(q, [&]<class T>(kernels::GatedDeltaRuleFwd<T>& a) {
    call.fill<T>(a);
    a.y = y.strided<T>().data;
    a.y_strides = head_strides(y);
    a.states = data_or_null<acc_t<T>>(states);
    a.final = data_or_null<acc_t<T>>(final);
    workspace = empty({a.workspace_size(device.type)}, sums, device);
    a.workspace = workspace.data<acc_t<T>>();
  });
  Tensors outputs{y};
  if (keep_state) outputs.push_back(final);
  outputs = op.record(
      outputs, inputs,
      [call, states, keep_state, shape = y.shape()](const VjpContext& context) {
        const Tensor& cotangent = context.cotangent(0);
        const Tensor dy =
            cotangent.defined() ? with_contiguous_rows(cotangent) : zeros(shape, call.q->dtype(), call.q->device());
        const Tensor dfinal = keep_state ? context.cotangent(1) : Tensor();
        return pull_back(call, states, dy, dfinal.defined() ? dfinal.contiguous() : dfinal, context);
      },
      CotangentLayout::strided);
  return {outputs[0], keep_state ? outputs[1] : Tensor()};
}

}  // namespace

Tensor gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                        const Tensor& beta) {
  return attend(q, k, v, log_decay, beta, {}, false).y;
}

GatedDeltaRuleResult gated_delta_rule_stretch(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& log_decay, const Tensor& beta, const Tensor& initial) {
  return attend(q, k, v, log_decay, beta, initial, true);
}

}  // namespace margay
