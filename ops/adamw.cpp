#include "ops/adamw.h"

#include <vector>

#include "engine/launch.h"
#include "engine/profiler.h"

namespace margay {
namespace {

const Op op{"adamw_step", no_grad("optimiser step"), [] {
              const auto call = [](const Tensors& in) {
                const NoGrad no_grad;
                const size_t n = in.size() / 4;
                Tensors values;
                for (const Tensor& tensor : in) values.push_back(tensor.detach().clone());
                const auto part = [&](size_t i) { return std::span<const Tensor>(values).subspan(i * n, n); };
                const Tensor hyper = from_values({0.1, 0.19, 0.002, 0.5}, {4}, in[0].device());
                adamw_step(part(0), part(1), part(2), part(3), std::vector<AdamWRule>(n, {.weight_decay = 0.1}), hyper);
                Tensors changed(part(0).begin(), part(0).end());
                for (const size_t i : {2, 3}) changed.insert(changed.end(), part(i).begin(), part(i).end());
                return changed;
              };
              const auto moments = [](const Shape& shape) { return real(shape, 0.1, 1); };
              return Samples{{.inputs = {real({5, 3}), real({5, 3}), real({5, 3}), moments({5, 3})}, .call = call},
                             {.inputs = {real({7}), real({}), real({0, 2}), real({7}), real({}), real({0, 2}),
                                         real({7}), real({}), real({0, 2}), moments({7}), moments({}), moments({0, 2})},
                              .call = call,
                              .name = "several tensors"},
                             {.inputs = {real({40000}), real({40000}), real({40000}), moments({40000})},
                              .call = call,
                              .name = "several blocks"}};
            }};

void check_like(const char* arg, const Tensor& tensor, const Tensor& param) {
  op.require_like(arg, tensor, "params", param);
  op.require(tensor.shape() == param.shape() && tensor.is_contiguous(), arg, tensor, "contiguous, of the shape of {}",
             param);
}

}  // namespace

void adamw_step(std::span<const Tensor> params, std::span<const Tensor> grads, std::span<const Tensor> m,
                std::span<const Tensor> v, std::span<const AdamWRule> rules, const Tensor& hyper,
                const AdamWOptions& options) {
  const size_t count = params.size();
  op.require(grads.size() == count, "grads", grads.size(), "as many as params: {}", count);
  op.require(m.size() == count, "m", m.size(), "as many as params: {}", count);
  op.require(v.size() == count, "v", v.size(), "as many as params: {}", count);
  op.require(rules.size() == count, "rules", rules.size(), "as many as params: {}", count);
  if (count == 0) return;
  op.require(hyper.defined() && hyper.dtype() == DType::f64 && hyper.shape() == Shape{4} && hyper.is_contiguous(),
             "hyper", hyper, "f64[4], contiguous");
  Tensors gradients;  // keeps contiguous copies alive
  std::vector<kernels::AdamWTensor> table;
  int64_t blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& param = params[i];
    op.require_float("params", param);
    op.require_like("params", param, "params[0]", params[0]);
    op.require(param.is_contiguous(), "params", param, "contiguous");
    op.require(hyper.device() == param.device(), "hyper", hyper, "on the device of params {}", param);
    check_like("m", m[i], param);
    check_like("v", v[i], param);
    if (!grads[i].defined()) continue;
    op.require_like("grads", grads[i], "params", param);
    op.require(grads[i].shape() == param.shape(), "grads", grads[i], "of the shape of {}", param);
    gradients.push_back(grads[i].contiguous());
    op.mutate("params", param);
    op.mutate("m", m[i]);
    op.mutate("v", v[i]);
    table.push_back({param.region().data, m[i].region().data, v[i].region().data, gradients.back().region().data,
                     param.numel(), blocks, rules[i]});
    blocks += (param.numel() + kernels::AdamW<float>::kBlock - 1) / kernels::AdamW<float>::kBlock;
  }
  op.launch<kernels::AdamW>(params[0], [&]<class T>(kernels::AdamW<T>& a) {
    a = {table.data(), static_cast<int64_t>(table.size()), blocks, hyper.data<double>(), options};
  });
  if (Profiler* const profiler = Profiler::current()) {
    profiler->add_bytes(op.name(), gradients);
    for (const std::span<const Tensor> changed : {params, m, v}) {  // read and written
      profiler->add_bytes(op.name(), changed);
      profiler->add_bytes(op.name(), changed);
    }
  }
}

}  // namespace margay
