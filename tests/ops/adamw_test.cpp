#include "ops/adamw.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/error.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

struct State {
  Tensors params, grads, m, v;
};

State make_state(const std::vector<Shape>& shapes, DType dtype) {
  State s;
  for (size_t i = 0; i < shapes.size(); ++i) {
    s.params.push_back(random_uniform(shapes[i], 10 + i, -1, 1, dtype));
    s.grads.push_back(random_uniform(shapes[i], 20 + i, -1, 1, dtype));
    s.m.push_back(zeros(shapes[i], dtype));
    s.v.push_back(zeros(shapes[i], dtype));
  }
  return s;
}

Tensor hyper_of(double lr, int step, double clip, const AdamWOptions& options = {}) {
  return from_values({lr, 1 - std::pow(options.beta1, step), 1 - std::pow(options.beta2, step), clip}, {4});
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const OpError& error) {
    CHECK(error.op() == "adamw_step");
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("adamw_step equals plain loops over several steps") {
  const std::vector<Shape> shapes{{3, 5}, {}, {0, 2}, {20000}, {17}};
  const std::vector<AdamWRule> rules{
      {.weight_decay = 0.1}, {}, {.weight_decay = 0.1}, {.weight_decay = 0.3}, {0.2, 0.015}};
  const AdamWOptions options{0.8, 0.95, 1e-6};
  for (const DType dtype : {DType::f32, DType::f64}) {
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;
    const State s = make_state(shapes, dtype);
    std::vector<std::vector<double>> p, m, v;
    for (const Tensor& param : s.params) {
      p.push_back(param.to(DType::f64).to_vector<double>());
      m.emplace_back(p.back().size());
      v.emplace_back(p.back().size());
    }
    for (int step = 1; step <= 3; ++step) {
      const double lr = 0.01 * step, clip = step == 2 ? 0.5 : 1;
      const NoGrad no_grad;
      adamw_step(s.params, s.grads, s.m, s.v, rules, hyper_of(lr, step, clip, options), options);
      for (size_t i = 0; i < p.size(); ++i) {
        const double rate = std::min(lr, rules[i].max_lr);
        const auto grad = s.grads[i].to(DType::f64).to_vector<double>();
        for (size_t j = 0; j < grad.size(); ++j) {
          const double g = clip * grad[j];
          m[i][j] = options.beta1 * m[i][j] + (1 - options.beta1) * g;
          v[i][j] = options.beta2 * v[i][j] + (1 - options.beta2) * g * g;
          const double mhat = m[i][j] / (1 - std::pow(options.beta1, step));
          const double vhat = v[i][j] / (1 - std::pow(options.beta2, step));
          p[i][j] = p[i][j] * (1 - rate * rules[i].weight_decay) - rate * mhat / (std::sqrt(vhat) + options.eps);
        }
      }
    }
    for (size_t i = 0; i < p.size(); ++i) {
      CAPTURE(i);
      CHECK(difference(s.params[i], from_values(p[i], shapes[i]), tolerance) == "");
      CHECK(difference(s.m[i], from_values(m[i], shapes[i]), tolerance) == "");
      CHECK(difference(s.v[i], from_values(v[i], shapes[i]), tolerance) == "");
    }
  }
}

TEST_CASE("adamw_step: a tensor without a gradient is left alone, decay included") {
  State s = make_state({{4}, {5}}, DType::f32);
  s.grads[0] = {};
  const Tensor before = s.params[0].clone(), other = s.params[1].clone();
  const NoGrad no_grad;
  adamw_step(s.params, s.grads, s.m, s.v, std::vector<AdamWRule>(2, {.weight_decay = 0.1}), hyper_of(0.1, 1, 1));
  CHECK(same_bits(s.params[0], before));
  CHECK_FALSE(same_bits(s.params[1], other));
  adamw_step({}, {}, {}, {}, {}, hyper_of(0.1, 1, 1));
}

TEST_CASE("adamw_step: no step is taken where the clip coefficient is NaN") {
  for (const Device device : {Device{}, Device{DeviceType::cuda, 0}}) {
    if (device != Device{} && cuda_device_count() == 0) continue;
    State s = make_state({{4}, {40000}}, DType::f32);
    for (Tensors* tensors : {&s.params, &s.grads, &s.m, &s.v})
      for (Tensor& tensor : *tensors) tensor = tensor.to(device).clone();
    Tensors before;
    for (const Tensors* tensors : {&s.params, &s.m, &s.v})
      for (const Tensor& tensor : *tensors) before.push_back(tensor.clone());
    const NoGrad no_grad;
    const auto step = [&](double clip) {
      adamw_step(s.params, s.grads, s.m, s.v, std::vector<AdamWRule>(2, {.weight_decay = 0.1}),
                 hyper_of(0.1, 1, clip).to(device));
      std::vector<bool> same;
      size_t i = 0;
      for (const Tensors* tensors : {&s.params, &s.m, &s.v})
        for (const Tensor& tensor : *tensors) same.push_back(same_bits(tensor.to(Device{}), before[i++].to(Device{})));
      return same;
    };
    CHECK(step(std::numeric_limits<double>::quiet_NaN()) == std::vector<bool>(6, true));
    CHECK(step(1) == std::vector<bool>(6, false));
  }
}

TEST_CASE("adamw_step: a parameter that an op has saved is known to have changed") {
  State s = make_state({{4}}, DType::f32);
  const Saved saved(s.params[0]);
  const NoGrad no_grad;
  adamw_step(s.params, s.grads, s.m, s.v, std::vector<AdamWRule>(1), hyper_of(0.1, 1, 1));
  CHECK_THROWS_AS(*saved, std::logic_error);
}

TEST_CASE("adamw_step: errors name the argument") {
  const auto step = [](const State& s, const Tensor& hyper, const std::vector<AdamWRule>& rules) {
    return message_of([&] { adamw_step(s.params, s.grads, s.m, s.v, rules, hyper); });
  };
  const Tensor hyper = hyper_of(0.1, 1, 1);
  const std::vector<AdamWRule> rules(2);
  State s = make_state({{4}, {5, 2}}, DType::f32);
  CHECK(step(s, zeros({4}), rules) == "adamw_step: hyper must be f64[4], contiguous, got f32[4]");
  CHECK(step(s, {}, rules).find("hyper must be") != std::string::npos);
  CHECK(step(s, hyper, {AdamWRule{}}).find("rules must be as many as params: 2, got 1") != std::string::npos);
  State fewer = s;
  fewer.grads.pop_back();
  CHECK(step(fewer, hyper, rules).find("grads must be as many as params") != std::string::npos);
  State wrong = s;
  wrong.m[1] = zeros({5});
  CHECK(step(wrong, hyper, rules) == "adamw_step: m must be contiguous, of the shape of f32[5,2], got f32[5]");
  wrong = s;
  wrong.v[0] = zeros({4}, DType::f64);
  CHECK(step(wrong, hyper, rules).find("v must be of the dtype") != std::string::npos);
  wrong = s;
  wrong.grads[0] = zeros({3});
  CHECK(step(wrong, hyper, rules).find("grads must be of the shape") != std::string::npos);
  wrong = s;
  wrong.params[0] = zeros({4, 2}).view({4}, {2});
  CHECK(step(wrong, hyper, rules).find("params must be contiguous") != std::string::npos);
  s.params[0].set_requires_grad();
  CHECK(step(s, hyper, rules).find("params must be a leaf, and recording off") != std::string::npos);
}

}  // namespace margay::test
