#include "ops/wkv.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"wkv", samples};

Sample sample_of(const char* name, int64_t batch, int64_t length, int64_t channels, double size = 1,
                 bool initial = false) {
  const SampleInput rows = real({batch, length, channels}, -size, size);
  Sample sample;
  sample.name = name;
  sample.inputs = {real({channels}, -2, -0.01), real({channels}), rows, real({batch, length, channels})};
  if (initial) sample.inputs.push_back(constant({batch, 3, channels}, 0.5, 1.5));
  // The state has no gradient, and is left out.
  sample.call = [initial](const Tensors& in) {
    return Tensors{wkv({in[0], in[1], in[2], in[3], initial ? in[4] : Tensor()})[0]};
  };
  return sample;
}

Samples samples() {
  return {sample_of("short", 2, 9, 6),
          sample_of("initial state", 2, 5, 7, 1, true),
          sample_of("large keys", 2, 9, 5, 20),
          sample_of("several chunks", 1, 150, 2),
          sample_of("several blocks of channels", 2, 4, 37, 3, true),
          sample_of("several ranges of channels", 1, 3, 100),
          sample_of("several ranges of sequences", 35, 2, 2),
          sample_of("one token", 2, 1, 16),
          sample_of("no tokens", 2, 0, 4, 1, true),
          sample_of("no channels", 2, 3, 0),
          sample_of("no sequences", 0, 3, 4, 1, true)};
}

kernels::WkvShape check(const Wkv& in) {
  op.require_float("k", in.k);
  op.require(in.k.ndim() == 3, "k", in.k, "[B,L,C]");
  const auto check_shape = [&](const char* arg, const Tensor& tensor, const Shape& shape, const char* wanted) {
    op.require_like(arg, tensor, "k", in.k);
    op.require(tensor.shape() == shape, arg, tensor, "{} for k {}", wanted, in.k);
  };
  const int64_t batch = in.k.dim(0), C = in.k.dim(2);
  check_shape("w", in.w, {C}, "[C]");
  check_shape("u", in.u, {C}, "[C]");
  check_shape("v", in.v, in.k.shape(), "[B,L,C]");
  if (in.initial.defined()) check_shape("initial", in.initial, {batch, 3, C}, "[B,3,C]");
  return {batch, in.k.dim(1), C};
}

// The arguments as the kernels read them.
struct Call {
  kernels::WkvShape shape;
  Saved w, u, k, v, initial;

  template <class T>
  kernels::WkvInputs<T> inputs() const {
    return {.shape = shape,
            .w = w->data<T>(),
            .u = u->data<T>(),
            .k = k->data<T>(),
            .v = v->data<T>(),
            .initial = initial->defined() ? initial->data<T>() : nullptr};
  }
};

Tensors pull_back(const Call& call, const Tensor& checkpoints, const Tensor& dy) {
  const Tensor& k = call.k;
  const Tensor dw = empty_like(call.w), du = empty_like(call.u), dk = empty_like(k), dv = empty_like(k);
  Tensor workspace;
  op.launch<kernels::WkvBwd>(k, [&]<class T>(kernels::WkvBwd<T>& a) {
    workspace = empty({a.workspace_size(call.shape, k.device().type)}, acc_dtype(k.dtype()), k.device());
    a = {.in = call.inputs<T>(),
         .checkpoints = checkpoints.data<acc_t<T>>(),
         .dy = dy.data<T>(),
         .dw = dw.data<T>(),
         .du = du.data<T>(),
         .dk = dk.data<T>(),
         .dv = dv.data<T>(),
         .workspace = workspace.data<acc_t<T>>()};
  });
  return {dw, du, dk, dv};
}

}  // namespace

Tensors wkv(const Wkv& in) {
  const kernels::WkvShape shape = check(in);
  const Call call{.shape = shape,
                  .w = Saved(in.w.contiguous()),
                  .u = Saved(in.u.contiguous()),
                  .k = Saved(in.k.contiguous()),
                  .v = Saved(in.v.contiguous()),
                  .initial = Saved(in.initial.defined() ? in.initial.contiguous() : in.initial)};
  const DType dtype = in.k.dtype();
  const Device device = in.k.device();
  const std::initializer_list<Tensor> inputs{in.w, in.u, in.k, in.v};
  const Tensor y = empty(in.k.shape(), dtype, device), final = empty({shape.batch, 3, shape.channels}, dtype, device);
  Tensor checkpoints, workspace;
  if (Graph::recording(inputs)) checkpoints = empty({shape.checkpoints_size(device.type)}, acc_dtype(dtype), device);
  op.launch<kernels::WkvFwd>(y, [&]<class T>(kernels::WkvFwd<T>& a) {
    workspace = empty({a.workspace_size(shape, device.type)}, acc_dtype(dtype), device);
    a = {.in = call.inputs<T>(),
         .y = y.data<T>(),
         .final = final.data<T>(),
         .checkpoints = checkpoints.defined() ? checkpoints.data<acc_t<T>>() : nullptr,
         .workspace = workspace.data<acc_t<T>>()};
  });
  const auto vjp = [call, checkpoints](const Tensor& dy) { return pull_back(call, checkpoints, dy); };
  return {op.record(y, inputs, vjp), final};
}

}  // namespace margay
