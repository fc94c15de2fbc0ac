#include "ops/selective_scan.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"selective_scan", samples};

struct Options {
  bool D = true, z = true, bias = true, softplus = true, initial = false;
};

Sample sample_of(const char* name, int64_t batch, int64_t length, int64_t E, int64_t N, Options options) {
  Sample sample;
  sample.name = name;
  const Shape tokens{batch, length, E}, states{batch, length, N};
  sample.inputs = {real(tokens), real(tokens, options.softplus ? -3 : 0.05, 1), real({E, N}, -2, -0.1), real(states),
                   real(states)};
  if (options.D) sample.inputs.push_back(real({E}));
  if (options.z) sample.inputs.push_back(real(tokens));
  if (options.bias) sample.inputs.push_back(real({E}, 0, 1));
  if (options.initial) sample.inputs.push_back(real({batch, E, N}));
  sample.call = [options](const Tensors& in) {
    size_t next = 5;
    const auto optional = [&](bool given) { return given ? in[next++] : Tensor(); };
    SelectiveScan scan{in[0], in[1], in[2], in[3], in[4]};
    scan.D = optional(options.D);
    scan.z = optional(options.z);
    scan.delta_bias = optional(options.bias);
    scan.initial = optional(options.initial);
    scan.delta_softplus = options.softplus;
    return selective_scan(scan);
  };
  return sample;
}

Samples samples() {
  constexpr bool no = false, yes = true;
  return {sample_of("mamba", 2, 9, 6, 4, {}),
          sample_of("initial states", 2, 5, 7, 3, {.initial = yes}),
          sample_of("bare", 3, 6, 5, 2, {.D = no, .z = no, .bias = no, .softplus = no}),
          sample_of("gate alone", 1, 7, 4, 5, {.D = no, .bias = no, .softplus = no, .initial = yes}),
          sample_of("bias without softplus", 1, 4, 3, 2, {.D = no, .z = no, .softplus = no}),
          sample_of("several chunks", 1, 150, 2, 2, {.initial = yes}),
          sample_of("several blocks of channels", 2, 4, 37, 5, {.initial = yes}),
          sample_of("several groups of states", 1, 3, 2, 18, {.initial = yes}),
          sample_of("several ranges of channels", 1, 3, 100, 2, {}),
          sample_of("several ranges of sequences", 35, 2, 2, 1, {}),
          sample_of("one token", 2, 1, 16, 1, {.initial = yes}),
          sample_of("no tokens", 2, 0, 4, 3, {.initial = yes}),
          sample_of("no channels", 2, 3, 0, 2, {}),
          sample_of("no states", 2, 3, 4, 0, {}),
          sample_of("no sequences", 0, 3, 4, 2, {.initial = yes})};
}

kernels::ScanShape check(const SelectiveScan& in) {
  op.require_float("u", in.u);
  op.require(in.u.ndim() == 3, "u", in.u, "[B,L,E]");
  const int64_t batch = in.u.dim(0), length = in.u.dim(1), E = in.u.dim(2);
  op.require_like("A", in.A, "u", in.u);
  op.require(in.A.ndim() == 2 && in.A.dim(0) == E, "A", in.A, "[E,N], E = last axis of u {}", in.u);
  const int64_t N = in.A.dim(1);
  const auto check_shape = [&](const char* arg, const Tensor& tensor, const Shape& shape, const char* wanted) {
    op.require_like(arg, tensor, "u", in.u);
    op.require(tensor.shape() == shape, arg, tensor, "{} for u {} and A {}", wanted, in.u, in.A);
  };
  check_shape("delta", in.delta, {batch, length, E}, "[B,L,E]");
  check_shape("B", in.B, {batch, length, N}, "[B,L,N]");
  check_shape("C", in.C, {batch, length, N}, "[B,L,N]");
  if (in.D.defined()) check_shape("D", in.D, {E}, "[E]");
  if (in.z.defined()) check_shape("z", in.z, {batch, length, E}, "[B,L,E]");
  if (in.delta_bias.defined()) check_shape("delta_bias", in.delta_bias, {E}, "[E]");
  if (in.initial.defined()) check_shape("initial", in.initial, {batch, E, N}, "[B,E,N]");
  return {batch, length, E, N};
}

Tensor contiguous_if_defined(const Tensor& x) { return x.defined() ? x.contiguous() : x; }

// The arguments as the kernels read them.
struct Call {
  kernels::ScanShape shape;
  Saved u, delta, A, B, C, D, z, delta_bias, initial;
  bool delta_softplus;

  template <class T>
  kernels::ScanInputs<T> inputs() const {
    using kernels::token_rows;
    const auto pointer = [](const Tensor& x) -> const T* { return x.defined() ? x.data<T>() : nullptr; };
    return {.shape = shape,
            .u = token_rows<T>(u),
            .delta = token_rows<T>(delta),
            .B = token_rows<T>(B),
            .C = token_rows<T>(C),
            .z = token_rows<T>(z),
            .A = pointer(A),
            .D = pointer(D),
            .delta_bias = pointer(delta_bias),
            .initial = pointer(initial),
            .delta_softplus = delta_softplus};
  }
};

Tensors pull_back(const Call& call, const Tensor& checkpoints, const VjpContext& context) {
  const Tensor& u = call.u;
  const Tensor dy = context.cotangent(0).defined() ? context.cotangent(0) : zeros_like(u);
  const Tensor& dfinal = context.cotangent(1);
  const auto gradient = [](const Tensor& x) { return x.defined() ? empty_like(x) : x; };
  const Tensors gradients{gradient(u),      gradient(call.delta),      gradient(call.A),
                          gradient(call.B), gradient(call.C),          gradient(call.D),
                          gradient(call.z), gradient(call.delta_bias), gradient(call.initial)};
  Tensor workspace;
  op.launch<kernels::SelectiveScanBwd>(u, [&]<class T>(kernels::SelectiveScanBwd<T>& a) {
    workspace = empty({a.workspace_size(call.shape, u.device().type)}, acc_dtype(u.dtype()), u.device());
    const auto pointer = [&](size_t i) { return gradients[i].defined() ? gradients[i].data<T>() : nullptr; };
    a = {.in = call.inputs<T>(),
         .checkpoints = checkpoints.data<acc_t<T>>(),
         .dy = dy.data<T>(),
         .dfinal = dfinal.defined() ? dfinal.data<T>() : nullptr,
         .du = pointer(0),
         .ddelta = pointer(1),
         .dA = pointer(2),
         .dB = pointer(3),
         .dC = pointer(4),
         .dD = pointer(5),
         .dz = pointer(6),
         .ddelta_bias = pointer(7),
         .dinitial = pointer(8),
         .workspace = workspace.data<acc_t<T>>()};
  });
  return gradients;
}

}  // namespace

Tensors selective_scan(const SelectiveScan& in) {
  const kernels::ScanShape shape = check(in);
  const Call call{.shape = shape,
                  .u = Saved(with_contiguous_rows(in.u)),
                  .delta = Saved(with_contiguous_rows(in.delta)),
                  .A = Saved(in.A.contiguous()),
                  .B = Saved(with_contiguous_rows(in.B)),
                  .C = Saved(with_contiguous_rows(in.C)),
                  .D = Saved(contiguous_if_defined(in.D)),
                  .z = Saved(with_contiguous_rows(in.z)),
                  .delta_bias = Saved(contiguous_if_defined(in.delta_bias)),
                  .initial = Saved(contiguous_if_defined(in.initial)),
                  .delta_softplus = in.delta_softplus};
  const DType dtype = in.u.dtype(), sums = acc_dtype(dtype);
  const Device device = in.u.device();
  const std::initializer_list<Tensor> inputs{in.u, in.delta, in.A, in.B, in.C, in.D, in.z, in.delta_bias, in.initial};
  const Tensor y = empty(in.u.shape(), dtype, device);
  const Tensor final = empty({shape.batch, shape.channels, shape.states}, dtype, device);
  Tensor checkpoints, workspace;
  if (Graph::recording(inputs)) checkpoints = empty({shape.checkpoints_size(device.type)}, sums, device);
  op.launch<kernels::SelectiveScanFwd>(y, [&]<class T>(kernels::SelectiveScanFwd<T>& a) {
    workspace = empty({a.workspace_size(shape, device.type)}, sums, device);
    a = {.in = call.inputs<T>(),
         .y = y.data<T>(),
         .final = final.data<T>(),
         .checkpoints = checkpoints.defined() ? checkpoints.data<acc_t<T>>() : nullptr,
         .workspace = workspace.data<acc_t<T>>()};
  });
  return op.record(Tensors{y, final}, inputs,
                   [call, checkpoints](const VjpContext& context) { return pull_back(call, checkpoints, context); });
}

}  // namespace margay
