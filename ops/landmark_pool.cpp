#include "ops/landmark_pool.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"landmark_pool", samples};

Sample sample_of(const char* name, const Shape& k, const Shape& weight) {
  return {.inputs = {real(k), real(weight)},
          .call = [](const Tensors& in) { return Tensors{landmark_pool(in[0], in[1])}; },
          .name = name};
}

Samples samples() {
  return {sample_of("shared", {2, 3, 12, 5}, {4}),
          sample_of("per head", {2, 3, 12, 5}, {3, 4}),
          sample_of("incomplete block at the end", {1, 2, 11, 16}, {2, 3}),
          sample_of("blocks of one token", {2, 1, 5, 3}, {1}),
          sample_of("one block", {1, 2, 7, 17}, {7}),
          sample_of("shorter than a block", {2, 2, 3, 4}, {5}),
          sample_of("wide heads", {1, 1, 9, 81}, {1, 4}),
          sample_of("more landmarks than pieces", {1, 2, 140, 2}, {2, 2}),
          sample_of("no tokens", {2, 2, 0, 4}, {3}),
          sample_of("no heads", {2, 0, 6, 4}, {0, 3}),
          sample_of("heads of size 0", {1, 2, 6, 0}, {2, 3})};
}

kernels::LandmarkPoolShape check(const Tensor& k, const Tensor& weight) {
  op.require_float("k", k);
  op.require(k.ndim() == 4, "k", k, "[B,H,L,dh]");
  op.require_like("weight", weight, "k", k);
  const bool shared = weight.ndim() == 1;
  op.require((shared || (weight.ndim() == 2 && weight.dim(0) == k.dim(1))) && weight.dim(-1) > 0, "weight", weight,
             "[W] or [H,W], W > 0, for k {}", k);
  return {k.dim(0), k.dim(1), k.dim(2), k.dim(3), weight.dim(-1), shared ? 1 : k.dim(1)};
}

struct Call {
  kernels::LandmarkPoolShape shape;
  Saved k, weight;
};

Tensors pull_back(const Call& call, const VjpContext& context) {
  const kernels::LandmarkPoolShape& s = call.shape;
  const Tensor dy = with_contiguous_rows(context.cotangent());
  const DType dtype = dy.dtype();
  const Device device = dy.device();
  const Tensor dk = context.wanted(0) ? heads_view(empty({s.B, s.L, 1, s.H, s.dh}, dtype, device)) : Tensor();
  const Tensor dweight = context.wanted(1) ? empty(call.weight->shape(), dtype, device) : Tensor();
  Tensor workspace;
  op.launch<kernels::LandmarkPoolBwd>(dy, [&]<class T>(kernels::LandmarkPoolBwd<T>& a) {
    workspace = empty({a.workspace_size(s)}, acc_dtype(dtype), device);
    a = {.shape = s,
         .k = call.k->strided<T>().data,
         .dy = dy.strided<T>().data,
         .k_strides = head_strides(call.k),
         .dy_strides = head_strides(dy),
         .weight = call.weight->data<T>(),
         .dk = dk.defined() ? dk.strided<T>().data : nullptr,
         .dk_strides = dk.defined() ? head_strides(dk) : kernels::HeadStrides{},
         .dweight = dweight.defined() ? dweight.data<T>() : nullptr,
         .workspace = workspace.data<acc_t<T>>()};
  });
  return {dk, dweight};
}

}  // namespace

Tensor landmark_pool(const Tensor& k, const Tensor& weight) {
  const kernels::LandmarkPoolShape shape = check(k, weight);
  const Call call{shape, Saved(with_contiguous_rows(k)), Saved(weight.contiguous())};
  const Tensor y = empty({shape.B, shape.H, shape.M(), shape.dh}, k.dtype(), k.device());
  Tensor workspace;
  op.launch<kernels::LandmarkPoolFwd>(k, [&]<class T>(kernels::LandmarkPoolFwd<T>& a) {
    workspace = empty({a.workspace_size(shape)}, acc_dtype(k.dtype()), k.device());
    a = {.shape = shape,
         .k = call.k->strided<T>().data,
         .k_strides = head_strides(call.k),
         .weight = call.weight->data<T>(),
         .y = y.data<T>(),
         .workspace = workspace.data<acc_t<T>>()};
  });
  return op.record(
      y, {k, weight}, [call](const VjpContext& context) { return pull_back(call, context); }, CotangentLayout::strided);
}

}  // namespace margay
