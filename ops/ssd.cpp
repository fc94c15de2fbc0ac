#include "ops/ssd.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"ssd", samples};

struct SampleShape {
  int64_t batch, length, heads, head_dim, states, chunk;
};

Sample sample_of(const char* name, const SampleShape& s, bool initial = false) {
  Sample sample;
  sample.name = name;
  const Shape rows{s.batch, s.length, s.states};
  sample.inputs = {real({s.batch, s.length, s.heads * s.head_dim}),
                   real({s.batch, s.length, s.heads}, 0.05, 1),
                   real({s.heads}, -2, -0.1),
                   real(rows),
                   real(rows),
                   real({s.heads})};
  if (initial) sample.inputs.push_back(real({s.batch, s.heads, s.states, s.head_dim}));
  sample.call = [initial, chunk = s.chunk](const Tensors& in) {
    return ssd({in[0], in[1], in[2], in[3], in[4], in[5], initial ? in[6] : Tensor(), chunk});
  };
  return sample;
}

Samples samples() {
  return {sample_of("one chunk", {2, 9, 2, 3, 4, 16}),
          sample_of("several chunks", {2, 11, 2, 3, 4, 4}, true),
          sample_of("many heads", {1, 6, 9, 2, 3, 4}, true),
          sample_of("wide heads", {1, 5, 1, 19, 2, 3}),
          sample_of("a chunk of several vectors", {2, 75, 1, 2, 2, 70}, true),
          sample_of("chunks of one token", {2, 4, 2, 2, 3, 1}),
          sample_of("many sequences", {18, 2, 2, 2, 1, 8}),
          sample_of("one token", {2, 1, 2, 4, 3, 8}, true),
          sample_of("no tokens", {2, 0, 2, 4, 3, 8}, true),
          sample_of("no heads", {2, 3, 0, 4, 3, 8}),
          sample_of("no states", {2, 3, 2, 4, 0, 8}),
          sample_of("no sequences", {0, 3, 2, 4, 3, 8}, true)};
}

kernels::SsdShape check(const Ssd& in) {
  op.require_float("x", in.x);
  op.require(in.x.ndim() == 3, "x", in.x, "[B,L,H*P]");
  op.require(in.chunk >= 1, "chunk", in.chunk, "at least 1");
  op.require_like("A", in.A, "x", in.x);
  const int64_t batch = in.x.dim(0), length = in.x.dim(1), width = in.x.dim(2);
  op.require(in.A.ndim() == 1 && (in.A.dim(0) > 0 ? width % in.A.dim(0) == 0 : width == 0), "A", in.A,
             "[H], H dividing the last axis of x {}", in.x);
  const int64_t heads = in.A.dim(0), head_dim = heads > 0 ? width / heads : 0;
  op.require_like("B", in.B, "x", in.x);
  op.require(in.B.ndim() == 3 && in.B.dim(0) == batch && in.B.dim(1) == length, "B", in.B, "[B,L,N] for x {}", in.x);
  const int64_t states = in.B.dim(2);
  const auto check_shape = [&](const char* arg, const Tensor& tensor, const Shape& shape, const char* wanted) {
    op.require_like(arg, tensor, "x", in.x);
    op.require(tensor.shape() == shape, arg, tensor, "{} for x {}, A {} and B {}", wanted, in.x, in.A, in.B);
  };
  check_shape("step", in.step, {batch, length, heads}, "[B,L,H]");
  check_shape("C", in.C, {batch, length, states}, "[B,L,N]");
  check_shape("D", in.D, {heads}, "[H]");
  if (in.initial.defined()) {
    // Without heads their width is unknown.
    const int64_t P = heads > 0 || in.initial.ndim() != 4 ? head_dim : in.initial.dim(3);
    check_shape("initial", in.initial, {batch, heads, states, P}, "[B,H,N,P]");
  }
  return {batch,    length, heads,
          head_dim, states, std::min({in.chunk, kernels::SsdShape::kMostTokens, std::max<int64_t>(1, length)})};
}

// The arguments as the kernels read them.
struct Call {
  kernels::SsdShape shape;
  Saved x, step, A, B, C, D, initial;

  template <class T>
  kernels::SsdInputs<T> inputs() const {
    using kernels::token_rows;
    return {.shape = shape,
            .x = token_rows<T>(x),
            .step = token_rows<T>(step),
            .B = token_rows<T>(B),
            .C = token_rows<T>(C),
            .A = A->data<T>(),
            .D = D->data<T>(),
            .initial = initial->defined() ? initial->data<T>() : nullptr};
  }
};

Tensors pull_back(const Call& call, const Tensor& checkpoints, const VjpContext& context) {
  const Tensor& x = call.x;
  const Tensor dy = context.cotangent(0).defined() ? context.cotangent(0) : zeros_like(x);
  const Tensor& dfinal = context.cotangent(1);
  const Tensor dx = empty_like(x), dstep = empty_like(call.step), dA = empty_like(call.A), dB = empty_like(call.B),
               dC = empty_like(call.C), dD = empty_like(call.D),
               dinitial = call.initial->defined() ? empty_like(call.initial) : Tensor();
  Tensor workspace;
  op.launch<kernels::SsdBwd>(x, [&]<class T>(kernels::SsdBwd<T>& a) {
    workspace = empty({a.workspace_size(call.shape, x.device().type)}, acc_dtype(x.dtype()), x.device());
    a = {.in = call.inputs<T>(),
         .checkpoints = checkpoints.data<acc_t<T>>(),
         .dy = dy.data<T>(),
         .dfinal = dfinal.defined() ? dfinal.data<T>() : nullptr,
         .dx = dx.data<T>(),
         .dstep = dstep.data<T>(),
         .dA = dA.data<T>(),
         .dB = dB.data<T>(),
         .dC = dC.data<T>(),
         .dD = dD.data<T>(),
         .dinitial = dinitial.defined() ? dinitial.data<T>() : nullptr,
         .workspace = workspace.data<acc_t<T>>()};
  });
  return {dx, dstep, dA, dB, dC, dD, dinitial};
}

}  // namespace

Tensors ssd(const Ssd& in) {
  const kernels::SsdShape shape = check(in);
  const Call call{.shape = shape,
                  .x = Saved(with_contiguous_rows(in.x)),
                  .step = Saved(with_contiguous_rows(in.step)),
                  .A = Saved(in.A.contiguous()),
                  .B = Saved(with_contiguous_rows(in.B)),
                  .C = Saved(with_contiguous_rows(in.C)),
                  .D = Saved(in.D.contiguous()),
                  .initial = Saved(in.initial.defined() ? in.initial.contiguous() : in.initial)};
  const DType dtype = in.x.dtype(), sums = acc_dtype(dtype);
  const Device device = in.x.device();
  const std::initializer_list<Tensor> inputs{in.x, in.step, in.A, in.B, in.C, in.D, in.initial};
  const Tensor y = empty(in.x.shape(), dtype, device);
  const Tensor final = empty({shape.batch, shape.heads, shape.states, shape.head_dim}, dtype, device);
  Tensor checkpoints, workspace;
  if (Graph::recording(inputs) || device.type == DeviceType::cuda)
    checkpoints = empty({shape.checkpoints_size(device.type)}, sums, device);
  op.launch<kernels::SsdFwd>(y, [&]<class T>(kernels::SsdFwd<T>& a) {
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
