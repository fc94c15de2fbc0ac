#include "ops/grad_norm.h"

#include <vector>

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"global_norm", no_grad("used on gradients only"), [] {
              const auto call = [](const Tensors& in) { return Tensors{global_norm(in)}; };
              return Samples{
                  {.inputs = {real({3, 5})}, .call = call},
                  {.inputs = {real({7}), real({}), real({0, 2}), real({4})}, .call = call, .name = "several"},
                  {.inputs = {real({33000}), real({20000})}, .call = call, .name = "several blocks"}};
            }};

const Op clip_op{"clip_coefficient", no_grad("used on gradients only"), [] {
                   const auto call = [](const Tensors& in) {
                     const Tensor loss = in.size() > 1 ? in[1].detach().to(DType::f64) : Tensor();
                     return Tensors{clip_coefficient(in[0].detach().to(DType::f64), 0.5, loss)};
                   };
                   return Samples{{.inputs = {real({}, 0, 0.4)}, .call = call},
                                  {.inputs = {real({}, 1, 9)}, .call = call, .name = "clipped"},
                                  {.inputs = {real({}, 1, 9), real({})}, .call = call, .name = "with a loss"}};
                 }};

}  // namespace

Tensor global_norm(std::span<const Tensor> tensors) {
  Tensors defined;  // contiguous
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    op.require_float("tensors", tensor);
    if (!defined.empty()) op.require_like("tensors", tensor, "the first", defined[0]);
    defined.push_back(tensor.contiguous());
  }
  if (defined.empty()) return zeros({}, DType::f64);
  std::vector<kernels::NormTensor> table;
  int64_t blocks = 0;
  for (const Tensor& tensor : defined) {
    table.push_back({tensor.region().data, tensor.numel(), blocks});
    blocks += (tensor.numel() + kernels::GlobalNorm<float>::kBlock - 1) / kernels::GlobalNorm<float>::kBlock;
  }
  const Tensor norm = empty({}, DType::f64, defined[0].device());
  const Tensor workspace = empty({blocks}, DType::f64, defined[0].device());
  op.launch<kernels::GlobalNorm>(defined[0], [&]<class T>(kernels::GlobalNorm<T>& a) {
    a = {table.data(), static_cast<int64_t>(table.size()), blocks, workspace.data<double>(), norm.data<double>()};
  });
  return norm;
}

Tensor clip_coefficient(const Tensor& norm, double max_norm, const Tensor& loss) {
  clip_op.require(norm.defined() && norm.dtype() == DType::f64 && norm.ndim() == 0, "norm", norm, "f64[]");
  clip_op.require(max_norm >= 0, "max_norm", max_norm, "0 (no clipping) or more");
  if (loss.defined()) {
    clip_op.require_like("loss", loss, "norm", norm);
    clip_op.require(loss.ndim() == 0, "loss", loss, "f64[]");
  }
  const Tensor coefficient = empty_like(norm);
  clip_op.launch<kernels::ClipCoefficient>(norm, [&]<class T>(kernels::ClipCoefficient<T>& a) {
    a = {norm.data<T>(), loss.defined() ? loss.data<T>() : nullptr, coefficient.data<T>(), max_norm};
  });
  return coefficient;
}

}  // namespace margay
