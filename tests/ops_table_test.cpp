// Every registered op on every one of its samples: gradients against central differences (also from strided inputs,
// with one tensor as two inputs, and accumulated over two backward calls), f32 against f64, and equal bits for any
// number of threads. Adding an op adds it here by itself.

#include <doctest/doctest.h>

#include <string>

#include "engine/device.h"
#include "engine/op.h"
#include "engine/parallel.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"

namespace margay::test {
namespace {

template <class Check>
void for_every_sample(const Check& check) {
  for (const Op* op : Op::all()) {
    for (const Sample& sample : op->samples()) {
      const std::string title = std::string(op->name()) + (sample.name.empty() ? "" : ": " + sample.name);
      CAPTURE(title);
      CHECK_NOTHROW(check(*op, sample));
    }
  }
}

bool has_gradient(const Op& op) { return op.no_gradient_reason().empty(); }

Tensors leaves_of(const Sample& sample, const Tensors& inputs) {
  Tensors leaves;
  const std::vector<bool> differentiable = differentiable_inputs(sample);
  for (size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].detach());
    if (differentiable[i]) leaves.back().set_requires_grad();
  }
  return leaves;
}

void backward_all(const Tensors& outputs, DType dtype) {
  for (size_t k = 0; k < outputs.size(); ++k)
    if (outputs[k].defined() && outputs[k].requires_grad())
      outputs[k].backward(random_uniform(outputs[k].shape(), 50 + k, -1, 1, dtype).to(outputs[k].device()), true);
}

// Outputs and gradients of a sample.
Tensors run_sample(const Sample& sample, const Tensors& inputs, DType dtype) {
  const Tensors leaves = leaves_of(sample, inputs);
  Tensors results = sample.call(leaves);
  backward_all(results, dtype);
  for (Tensor& result : results) result = result.detach();
  for (const Tensor& leaf : leaves)
    if (leaf.grad().defined()) results.push_back(leaf.grad());
  return results;
}

}  // namespace

TEST_CASE("every op has samples") {
  for (const Op* op : Op::all()) {
    CAPTURE(op->name());
    CHECK_FALSE(op->samples().empty());
  }
}

TEST_CASE("ops: gradients equal central differences") {
  for_every_sample([](const Op& op, const Sample& sample) {
    if (!has_gradient(op)) return;
    CHECK(gradcheck(sample.call, make_inputs(sample, DType::f64), differentiable_inputs(sample)) == "");
  });
}

TEST_CASE("ops: strided inputs give the same results and gradients") {
  for_every_sample([](const Op&, const Sample& sample) {
    const Tensors inputs = make_inputs(sample, DType::f64);
    Tensors strided;
    for (size_t i = 0; i < inputs.size(); ++i)
      strided.push_back(sample.inputs[i].strided ? as_strided_copy(inputs[i]) : inputs[i]);
    const Tensors expected = run_sample(sample, inputs, DType::f64), got = run_sample(sample, strided, DType::f64);
    REQUIRE(expected.size() == got.size());
    for (size_t i = 0; i < expected.size(); ++i) CHECK(difference(got[i], expected[i], 1e-12) == "");
  });
}

TEST_CASE("ops: one tensor as several inputs gathers all their gradients") {
  for_every_sample([](const Op& op, const Sample& sample) {
    const std::vector<bool> differentiable = differentiable_inputs(sample);
    if (!has_gradient(op)) return;
    for (size_t i = 0; i < differentiable.size(); ++i) {
      for (size_t j = i + 1; j < differentiable.size(); ++j) {
        if (!differentiable[i] || !differentiable[j] || sample.inputs[i].shape != sample.inputs[j].shape) continue;
        // Stay inside the ranges of both inputs.
        const size_t source = sample.inputs[i].low >= sample.inputs[j].low ? i : j;
        const auto repeated = [&](const Tensors& in) {
          Tensors arguments = in;
          arguments[i] = arguments[j] = in[source];
          return sample.call(arguments);
        };
        std::vector<bool> only_source(differentiable.size(), false);
        only_source[source] = true;
        CHECK(gradcheck(repeated, make_inputs(sample, DType::f64), only_source) == "");
      }
    }
  });
}

TEST_CASE("ops: two backward calls add up") {
  for_every_sample([](const Op& op, const Sample& sample) {
    if (!has_gradient(op)) return;
    const Tensors leaves = leaves_of(sample, make_inputs(sample, DType::f64));
    const Tensors outputs = sample.call(leaves);
    backward_all(outputs, DType::f64);
    Tensors once;
    for (const Tensor& leaf : leaves) once.push_back(leaf.grad().defined() ? leaf.grad().clone() : Tensor());
    backward_all(outputs, DType::f64);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (!once[i].defined()) continue;
      const Tensor doubled = once[i].clone();
      backend({}).accumulate(doubled.region(), once[i].region());
      CHECK(difference(leaves[i].grad(), doubled, 1e-12) == "");
    }
  });
}

TEST_CASE("ops: f32 agrees with f64") {
  for_every_sample([](const Op&, const Sample& sample) {
    const Tensors expected = run_sample(sample, make_inputs(sample, DType::f64), DType::f64);
    const Tensors got = run_sample(sample, make_inputs(sample, DType::f32), DType::f32);
    REQUIRE(expected.size() == got.size());
    for (size_t i = 0; i < expected.size(); ++i) CHECK(difference(got[i], expected[i], sample.tolerance) == "");
  });
}

TEST_CASE("ops: the number of threads does not change a bit") {
  const int before = num_threads();
  for_every_sample([](const Op&, const Sample& sample) {
    const Tensors inputs = make_inputs(sample, DType::f32);
    set_num_threads(1);
    const Tensors expected = run_sample(sample, inputs, DType::f32);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run_sample(sample, inputs, DType::f32);
      for (size_t i = 0; i < expected.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  });
  set_num_threads(before);
}

TEST_CASE("ops: the GPU agrees with the CPU" * doctest::skip(cuda_device_count() == 0)) {
  for_every_sample([&](const Op&, const Sample& sample) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      const Tensors inputs = make_inputs(sample, dtype);
      Tensors there;
      for (const Tensor& input : inputs) there.push_back(input.to(Device{DeviceType::cuda}));
      const Tensors expected = run_sample(sample, inputs, dtype), got = run_sample(sample, there, dtype);
      REQUIRE(expected.size() == got.size());
      for (size_t i = 0; i < expected.size(); ++i)
        CHECK(difference(got[i].to(Device{}), expected[i], dtype == DType::f64 ? 1e-10 : sample.tolerance) == "");
    }
  });
}

TEST_CASE("ops: gradients on the GPU equal central differences" * doctest::skip(cuda_device_count() == 0)) {
  for_every_sample([](const Op& op, const Sample& sample) {
    if (!has_gradient(op)) return;
    const Tensors inputs = make_inputs(sample, DType::f64, Device{DeviceType::cuda});
    CHECK(gradcheck(sample.call, inputs, differentiable_inputs(sample), {.elements = 2}) == "");
  });
}

TEST_CASE("the gradient check finds wrong gradients") {
  const auto square_with_gradient = [](double factor) {
    return [factor](const Tensors& in) {
      const Tensor y = in[0].clone();
      const auto values = in[0].to_vector<double>();
      for (size_t i = 0; i < values.size(); ++i) y.data<double>()[i] = values[i] * values[i];
      if (Graph::recording(in)) {
        Graph::record("square", std::span(&y, 1), in, [x = Saved(in[0]), factor](const VjpContext& context) {
          const Tensor dx = context.cotangent().clone();
          for (int64_t i = 0; i < dx.numel(); ++i) dx.data<double>()[i] *= factor * x->data<double>()[i];
          return Tensors{dx};
        });
      }
      return Tensors{y};
    };
  };
  const Tensors inputs{random_uniform({3, 2}, 5)};
  CHECK(gradcheck(square_with_gradient(2), inputs, {true}) == "");
  CHECK(gradcheck(square_with_gradient(2.001), inputs, {true}) != "");
  CHECK(gradcheck(square_with_gradient(-2), inputs, {true}) != "");
}

}  // namespace margay::test
