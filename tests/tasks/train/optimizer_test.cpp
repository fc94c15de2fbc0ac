#include "tasks/train/optimizer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/rng.h"
#include "tests/support/temp_dir.h"

using namespace margay;

namespace {

/// A weight that decays, a bias that does not and learns slowly, and a parameter that no gradient ever reaches.
Parameters made_up_parameters() {
  Parameters parameters;
  RandomStream random(3, 0);
  const auto add = [&](const char* name, const Shape& shape, bool decay) {
    std::vector<float> values;
    for (int64_t i = 0; i < shape.numel(); ++i) values.push_back(static_cast<float>(random.normal()));
    parameters.push_back({name, from_values(values, shape).set_requires_grad(), decay});
  };
  add("weight", {5, 7}, true);
  add("bias", {7}, false);
  parameters.back().max_lr = 0.02;
  add("unused", {3}, true);
  return parameters;
}

std::vector<float> gradient_at(int64_t step, size_t parameter, size_t size) {
  RandomStream random(4, static_cast<uint64_t>(step * 10) + parameter);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

void set_gradients(Parameters& parameters, int64_t step) {
  for (size_t i = 0; i < 2; ++i) {
    Tensor& value = parameters[i].value;
    value.set_grad(from_values(gradient_at(step, i, static_cast<size_t>(value.numel())), value.shape()));
  }
}

std::vector<std::vector<float>> values_of(const Parameters& parameters) {
  std::vector<std::vector<float>> values;
  for (const Parameter& parameter : parameters) values.push_back(parameter.value.detach().to_vector<float>());
  return values;
}

Tensor hyper_of(const Optimizer& optimizer, int64_t step, double lr) {
  const std::array<double, 4> values = optimizer.hyper(step, lr);
  return from_values(std::span<const double>(values), {4});
}

/// Takes a step; returns the norm of the gradients.
double update(Optimizer& optimizer, int64_t step, double lr) {
  return optimizer.apply(hyper_of(optimizer, step, lr)).item();
}

/// AdamW as Loshchilov and Hutter write it, in f64.
class NaiveAdamW {
 public:
  NaiveAdamW(const Parameters& parameters, const TrainConfig& config) : config_(config) {
    for (const Parameter& parameter : parameters) {
      const std::vector<float> values = parameter.value.detach().to_vector<float>();
      p.emplace_back(values.begin(), values.end());
      m_.emplace_back(values.size(), 0.0);
      v_.emplace_back(values.size(), 0.0);
      max_lr_.push_back(parameter.max_lr);
      decay_.push_back(parameter.decay || config.decay_groups == "zoology" ? config.weight_decay : 0);
    }
  }

  double update(int64_t step, double lr) {
    std::vector<std::vector<double>> gradients;
    double norm = 0;
    for (size_t i = 0; i < 2; ++i) {
      const std::vector<float> gradient = gradient_at(step, i, p[i].size());
      gradients.emplace_back(gradient.begin(), gradient.end());
      for (const double g : gradients[i]) norm += g * g;
    }
    norm = std::sqrt(norm);
    const double clip = config_.grad_clip > 0 ? std::min(1.0, config_.grad_clip / (norm + 1e-6)) : 1;
    const auto [b1, b2] = config_.betas;
    const auto t = static_cast<double>(step + 1);
    for (size_t i = 0; i < 2; ++i) {
      const double rate = std::min(lr, max_lr_[i]);
      for (size_t k = 0; k < p[i].size(); ++k) {
        const double g = clip * gradients[i][k];
        m_[i][k] = b1 * m_[i][k] + (1 - b1) * g;
        v_[i][k] = b2 * v_[i][k] + (1 - b2) * g * g;
        const double m = m_[i][k] / (1 - std::pow(b1, t)), v = v_[i][k] / (1 - std::pow(b2, t));
        p[i][k] = p[i][k] * (1 - rate * decay_[i]) - rate * m / (std::sqrt(v) + config_.eps);
      }
    }
    return norm;
  }

  std::vector<std::vector<double>> p;

 private:
  TrainConfig config_;
  std::vector<std::vector<double>> m_, v_;
  std::vector<double> decay_, max_lr_;
};

}  // namespace

TEST_CASE("optimizer: AdamW with decay groups, clipping and slow parameters equals the formula") {
  for (const char* groups : {"standard", "zoology"}) {
    for (const double clip : {0.0, 0.5, 100.0}) {
      CAPTURE(groups);
      CAPTURE(clip);
      TrainConfig config;
      config.decay_groups = groups;
      config.grad_clip = clip;
      config.weight_decay = 0.3;
      Parameters parameters = made_up_parameters();
      const std::vector<float> unused = values_of(parameters)[2];
      Optimizer optimizer(parameters, config);
      NaiveAdamW naive(parameters, config);
      for (int64_t step = 0; step < 20; ++step) {
        set_gradients(parameters, step);
        const double lr = 0.1 / static_cast<double>(step + 1);
        CHECK(update(optimizer, step, lr) == doctest::Approx(naive.update(step, lr)));
        CHECK_FALSE(parameters[0].value.grad().defined());
      }
      const auto values = values_of(parameters);
      for (size_t i = 0; i < 2; ++i) {
        for (size_t k = 0; k < values[i].size(); ++k)
          CHECK(values[i][k] == doctest::Approx(naive.p[i][k]).epsilon(1e-5));
      }
      CHECK(values[2] == unused);
    }
  }
}

TEST_CASE("optimizer: gradients that are not finite change nothing") {
  Parameters parameters = made_up_parameters();
  Optimizer optimizer(parameters, {});
  const auto before = values_of(parameters);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    set_gradients(parameters, 0);
    parameters[1].value.grad().fill(bad);
    CHECK_FALSE(std::isfinite(update(optimizer, 0, 0.1)));
    CHECK(values_of(parameters) == before);
  }
}

TEST_CASE("optimizer: a loss that is not finite changes nothing") {
  Parameters parameters = made_up_parameters();
  Optimizer optimizer(parameters, {});
  const auto before = values_of(parameters);
  for (const double loss : {std::numeric_limits<double>::infinity(), 1.0}) {
    set_gradients(parameters, 0);
    const Tensor hyper = hyper_of(optimizer, 0, 0.1);
    CHECK(std::isfinite(optimizer.apply(hyper, full({}, loss, DType::f64)).item()));
    CHECK((values_of(parameters) == before) == !std::isfinite(loss));
    CHECK(std::isnan(hyper.to_vector<double>()[3]) == !std::isfinite(loss));
    CHECK_FALSE(parameters[0].value.grad().defined());
  }
}

TEST_CASE("optimizer: moments are saved and loaded by name, to the bit") {
  const test::TempDir dir;
  const std::string path = dir.file("optimizer.safetensors");
  Parameters parameters = made_up_parameters(), others = made_up_parameters();
  Optimizer optimizer(parameters, {});
  for (int64_t step = 0; step < 3; ++step) {
    set_gradients(parameters, step);
    update(optimizer, step, 0.1);
  }
  optimizer.save(path);
  for (size_t i = 0; i < others.size(); ++i) others[i].value.copy_from(parameters[i].value);
  Optimizer loaded(others, {});
  loaded.load(path);
  set_gradients(parameters, 3);
  set_gradients(others, 3);
  update(optimizer, 3, 0.1);
  update(loaded, 3, 0.1);
  CHECK(values_of(parameters) == values_of(others));

  others.pop_back();
  CHECK_THROWS_WITH_AS(Optimizer(others, {}).load(path), doctest::Contains("unused"), DataError);
  others.push_back({"new", zeros({2}), true});
  CHECK_THROWS_WITH_AS(Optimizer(others, {}).load(path), doctest::Contains("new.m"), DataError);
}
