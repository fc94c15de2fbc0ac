#include "tools/margay/bench_op_case.h"

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/rng.h"
#include "ops/adamw.h"
#include "ops/precision.h"

namespace margay::cli {
namespace {

OpCase rounded(OpCase op) {
  op.name += "-bf16";
  op.call = [call = op.call](const Tensors& in) {
    const PrecisionScope precision(Precision::bf16);
    return call(in);
  };
  return op;
}

std::function<void()> forward_only(const OpCase& op, Device device) {
  return [call = op.call, inputs = op.inputs(device), device] {
    const NoGrad no_grad;
    call(inputs);
    backend(device).synchronize();
  };
}

std::function<void()> forward_and_backward(const OpCase& op, Device device) {
  const Tensors inputs = op.inputs(device);
  Tensor y;
  {
    const NoGrad no_grad;
    y = op.call(inputs);
  }
  return [call = op.call, inputs, seed = full(y.shape(), 1, DType::f32, device), device] {
    call(inputs).backward(seed);
    for (Tensor input : inputs) input.zero_grad();
    backend(device).synchronize();
  };
}

}  // namespace

void add_rows(const std::string& group, const OpCase& op, std::vector<BenchRow>& rows) {
  std::vector<OpCase> forms{op};
  if (op.in_bf16) forms.push_back(rounded(op));
  for (const OpCase& form : forms) {
    const std::string name = group + '/' + form.name;
    const bool needs_bf16 = &form != &forms.front();
    rows.push_back({.name = name + "/forward",
                    .tokens = form.tokens,
                    .flops = form.flops,
                    .bytes = form.bytes,
                    .needs_bf16 = needs_bf16,
                    .prepare = [form](Device device) { return forward_only(form, device); }});
    rows.push_back({.name = name + "/forward+backward",
                    .tokens = form.tokens,
                    .flops = (1 + form.backward) * form.flops,
                    .bytes = form.bytes + form.backward_bytes,
                    .needs_bf16 = needs_bf16,
                    .prepare = [form](Device device) { return forward_and_backward(form, device); }});
  }
}

BenchRow adamw_row(const std::string& name, int64_t count) {
  const auto prepare = [count](Device device) -> std::function<void()> {
    const Shape shape{count};
    const Tensors value{normal(shape, device)}, grad{normal(shape, device).detach()},
        m{zeros(shape, DType::f32, device)}, v{zeros(shape, DType::f32, device)};
    const Tensor hyper = from_values({1e-3, 0.1, 0.001, 1.0}, {4}, device);
    return [=] {
      const NoGrad no_grad;
      const std::vector<AdamWRule> rules{{.weight_decay = 0.1}};
      adamw_step(value, grad, m, v, rules, hyper);
      backend(device).synchronize();
    };
  };
  const double bytes = 7.0 * sizeof(float) * static_cast<double>(count);  // reads p, g, m, v and writes p, m, v
  return {.name = name, .bytes = bytes, .prepare = prepare};
}

Tensor normal(const Shape& shape, Device device) {
  RandomStream random(1, static_cast<uint64_t>(shape.numel()));
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (float& value : values) value = static_cast<float>(random.normal());
  return from_values(values, shape, device).set_requires_grad();
}

Tensor random_ids(int64_t count, int64_t limit, Device device) {
  RandomStream random(2, 0);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values) value = static_cast<int32_t>(random.below(static_cast<uint64_t>(limit)));
  return from_values(values, {count}, device);
}

}  // namespace margay::cli
