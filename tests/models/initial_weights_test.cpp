// Initial weights of gpt_neox and of the recurrent mixers, by the rules of the public code they follow.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "models/language_model.h"

namespace margay::test {
namespace {

std::vector<double> parameter(const LanguageModel& model, const std::string& name) {
  for (const Parameter& p : model.parameters())
    if (p.name == name || p.name == "blocks." + name) return p.value.detach().to(DType::f64).to_vector<double>();
  FAIL("no parameter " << name);
  return {};
}

LanguageModel model_of(const char* mixer, int64_t layers) {
  ModelConfig config;
  config.mixer = {mixer};
  config.n_layers = layers;
  config.vocab_size = 10;
  return LanguageModel(config, 5, DType::f64);
}

// That values fill [-bound, bound] evenly.
void check_uniform(const std::vector<double>& values, double bound) {
  double squares = 0;
  for (const double v : values) {
    CHECK(std::abs(v) <= bound);
    squares += v * v / static_cast<double>(values.size());
  }
  CHECK(std::sqrt(squares) == doctest::Approx(bound / std::sqrt(3)).epsilon(0.05));
}

void check_steps(const std::vector<double>& biases) {
  std::vector<double> steps;
  for (const double b : biases) steps.push_back(std::log1p(std::exp(b)));
  CHECK(*std::min_element(steps.begin(), steps.end()) >= 0.999e-3);
  CHECK(*std::max_element(steps.begin(), steps.end()) <= 0.1001);
}

}  // namespace

TEST_CASE("initial weights: mamba") {
  const LanguageModel model = model_of("mamba", 2);
  check_uniform(parameter(model, "0.mixer.in_proj.weight"), 1 / std::sqrt(64.0));
  check_uniform(parameter(model, "0.mixer.conv1d.weight"), 0.5);
  check_uniform(parameter(model, "1.mixer.x_proj.weight"), 1 / std::sqrt(128.0));
  check_uniform(parameter(model, "1.mixer.dt_proj.weight"), 0.5);
  check_uniform(parameter(model, "1.mixer.out_proj.weight"), 1 / std::sqrt(128.0 * 2));
  const auto steps = parameter(model, "0.mixer.dt_proj.bias");
  check_steps(steps);
  // Log-uniform: half of them on either side of 0.01.
  const auto below = std::count_if(steps.begin(), steps.end(), [](double b) { return std::log1p(std::exp(b)) < 0.01; });
  CHECK(below > 40);
  CHECK(below < 88);
  const auto A_log = parameter(model, "0.mixer.A_log");
  for (size_t i = 0; i < A_log.size(); ++i) CHECK(A_log[i] == doctest::Approx(std::log(i % 16 + 1)));
  for (const double v : parameter(model, "0.mixer.D")) CHECK(v == 1);
  for (const Parameter& p : model.parameters())
    if (p.name.find("A_log") != std::string::npos || p.name.ends_with(".D") || p.name.ends_with("bias"))
      CHECK_FALSE(p.decay);
}

TEST_CASE("initial weights: s4d and h3, whose time constants learn at 1e-3 at most and do not decay") {
  for (const char* mixer : {"s4d", "h3"}) {
    int64_t slow = 0;
    const LanguageModel model = model_of(mixer, 1);
    for (const Parameter& p : model.parameters()) {
      const bool time_constant = p.name.ends_with("log_dt") || p.name.find("A_") != std::string::npos;
      CHECK(p.max_lr == (time_constant ? 1e-3 : std::numeric_limits<double>::infinity()));
      if (time_constant) CHECK_FALSE(p.decay);
      slow += time_constant;
    }
    CHECK(slow == 3);
  }
}

TEST_CASE("initial weights: mamba2") {
  const LanguageModel model = model_of("mamba2", 3);
  check_uniform(parameter(model, "0.mixer.in_proj.weight"), 1 / std::sqrt(64.0));
  check_uniform(parameter(model, "2.mixer.out_proj.weight"), 1 / std::sqrt(128.0 * 3));
  check_steps(parameter(model, "0.mixer.dt_bias"));
  for (const double v : parameter(model, "0.mixer.A_log")) {
    CHECK(v >= 0);
    CHECK(v <= std::log(16));
  }
  for (const double v : parameter(model, "0.mixer.norm.weight")) CHECK(v == 1);
}

TEST_CASE("initial weights: gpt_neox, whose deviations depend on width and depth") {
  ModelConfig config;
  config.backbone = "gpt_neox";
  config.d_model = 48;
  config.n_layers = 3;
  config.vocab_size = 100;
  config.cat.conv_width = 4;
  const LanguageModel model(config, 5, DType::f64);
  const auto deviation = [&](const std::string& name) {
    double squares = 0;
    const auto values = parameter(model, name);
    for (const double v : values) squares += v * v / static_cast<double>(values.size());
    return std::sqrt(squares);
  };
  const std::string block = "gpt_neox.layers.2.";
  for (const std::string& name : {std::string("gpt_neox.embed_in.weight"), std::string("embed_out.weight"),
                                  block + "attention.query_key_value.weight", block + "mlp.dense_h_to_4h.weight"})
    CHECK(deviation(name) == doctest::Approx(std::sqrt(2 / (5 * 48.0))).epsilon(0.05));
  for (const char* name : {"attention.dense.weight", "mlp.dense_4h_to_h.weight"})
    CHECK(deviation(block + name) == doctest::Approx(2 / (3 * std::sqrt(48.0))).epsilon(0.05));
  for (const char* name : {"attention.query_key_value.bias", "attention.dense.bias", "mlp.dense_h_to_4h.bias",
                           "mlp.dense_4h_to_h.bias", "input_layernorm.bias", "post_attention_layernorm.bias"})
    for (const double v : parameter(model, block + name)) CHECK(v == 0);
  check_uniform(parameter(model, block + "attention.conv_k.weight"), 0.5);
  // The names and shapes of the contract, and no others.
  std::vector<std::string> names;
  for (const Parameter& p : model.parameters())
    if (p.name.find(".layers.") == std::string::npos) names.push_back(p.name + to_string(p.value.shape()));
  CHECK(names == std::vector<std::string>{"gpt_neox.embed_in.weight[100,48]", "gpt_neox.final_layer_norm.weight[48]",
                                          "gpt_neox.final_layer_norm.bias[48]", "embed_out.weight[100,48]"});
  CHECK(model.parameters().size() == 4 + 3 * (12 + 3));
  CHECK(parameter(model, block + "attention.query_key_value.weight").size() == 3 * 48 * 48);
}

TEST_CASE("initial weights: rwkv's time constants, made for twelve layers") {
  const LanguageModel model = model_of("rwkv", 2);
  for (const int layer : {0, 1}) {
    const std::string mixer = std::to_string(layer) + ".mixer.";
    const auto decay = parameter(model, mixer + "time_decay"), first = parameter(model, mixer + "time_first");
    const auto k = parameter(model, mixer + "time_mix_k"), v = parameter(model, mixer + "time_mix_v"),
               r = parameter(model, mixer + "time_mix_r");
    const double rising = layer / 11.0, falling = 1 - layer / 12.0;
    for (size_t i = 0; i < 64; ++i) {
      const double place = static_cast<double>(i);
      CHECK(decay[i] == doctest::Approx(-5 + 8 * std::pow(place / 63, 0.7 + 1.3 * rising)));
      CHECK(first[i] == doctest::Approx(std::log(0.3) + 0.5 * ((static_cast<int>(i) + 1) % 3 - 1)));
      CHECK(k[i] == doctest::Approx(std::pow(place / 64, falling)));
      CHECK(v[i] == doctest::Approx(k[i] + 0.3 * rising));
      CHECK(r[i] == doctest::Approx(std::pow(place / 64, 0.5 * falling)));
    }
  }
}

}  // namespace margay::test
