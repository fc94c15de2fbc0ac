// YaRN as models apply it: what a scale of 1 leaves alone, the temperature of every kind of position, and sequences
// beyond the training length. The rotation tables are tested in tests/ops/rope_test.cpp.

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/error.h"
#include "models/language_model.h"
#include "tests/models/reference_model.h"
#include "tests/models/small_model.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

Tensor logits_of(const LanguageModel& model, int64_t length) {
  const NoGrad no_grad;
  return model.logits(from_values(some_ids(length, model.config().vocab_size, 3), {1, length}));
}

const Tensor& parameter(const LanguageModel& model, const std::string& name) {
  for (const Parameter& p : model.parameters())
    if (p.name == name) return p.value;
  throw std::out_of_range(name);
}

// Multiplies rows begin ... end - 1 of a parameter.
void scale_rows(const Tensor& value, int64_t begin, int64_t end, double factor) {
  auto elements = value.to_vector<double>();
  const auto columns = static_cast<int64_t>(elements.size()) / value.dim(0);
  for (int64_t i = begin * columns; i < end * columns; ++i) elements[static_cast<size_t>(i)] *= factor;
  const NoGrad no_grad;
  Tensor(value).copy_from(from_values(elements, value.shape()));
}

// Scales all scores of a model by scaling its queries, or the learned scale where there is one.
void scale_scores(const LanguageModel& model, double factor) {
  const ModelConfig& config = model.config();
  const int64_t heads = config.n_heads, head_dim = config.d_model / heads;
  const bool neox = config.backbone == "gpt_neox";
  const std::string mixer = neox ? "gpt_neox.layers.0.attention." : "blocks.0.mixer.";
  if (config.cat.qk_norm == "l2_head") return scale_rows(parameter(model, mixer + "beta"), 0, heads, factor);
  for (const char* kind : {"weight", "bias"}) {
    if (!neox) scale_rows(parameter(model, mixer + "q_proj." + kind), 0, config.d_model, factor);
    for (int64_t h = 0; neox && h < heads; ++h)
      scale_rows(parameter(model, mixer + "query_key_value." + kind), 3 * h * head_dim, (3 * h + 1) * head_dim, factor);
  }
}

std::vector<ModelConfig> softmax_configs() {
  std::vector<ModelConfig> configs;
  for (const char* backbone : {"zoology", "gpt_neox"})
    for (const char* mixer : {"attention", "cat"})
      for (const char* norm : {"none", "l2_head"})
        for (const char* position : {"none", "rope", "learned"}) {
          if (std::string(mixer) == "attention" && std::string(norm) == "l2_head") continue;
          ModelConfig config = small_config();
          config.backbone = backbone;
          config.mixer = {mixer};
          config.cat.qk_norm = norm;
          config.position = position;
          configs.push_back(config);
        }
  return configs;
}

std::string describe(const ModelConfig& config) {
  return config.backbone + " " + config.mixer[0] + " " + config.position + " " + config.cat.qk_norm;
}

}  // namespace

TEST_CASE("yarn: with a scale of 1 the training length changes no bit") {
  for (ModelConfig config : softmax_configs()) {
    if (config.position == "learned") continue;  // its table has as many rows
    CAPTURE(describe(config));
    const LanguageModel model(config, 3);
    config.max_seq_len = 7;
    const LanguageModel shorter(config, 3);
    spread(model), spread(shorter);
    CHECK(same_bits(logits_of(model, 33), logits_of(shorter, 33)));
    config.yarn_scale = 2;
    const LanguageModel stretched(config, 3);
    spread(stretched);
    CHECK_FALSE(same_bits(logits_of(model, 33), logits_of(stretched, 33)));
  }
}

TEST_CASE("yarn: the temperature multiplies every score, whatever the positions") {
  const double scale = 8, temperature = std::pow(0.1 * std::log(scale) + 1, 2);
  for (ModelConfig config : softmax_configs()) {
    if (config.position == "rope") config.rope_fraction = 0;  // rotates nothing: the temperature is left
    CAPTURE(describe(config));
    const LanguageModel plain(config, 3, DType::f64);
    config.yarn_scale = scale;
    const LanguageModel stretched(config, 3, DType::f64);
    spread(plain), spread(stretched);
    scale_scores(plain, temperature);
    CHECK(difference_relative_to_max(logits_of(stretched, 15), logits_of(plain, 15), 1e-12) == "");
  }
}

TEST_CASE("yarn: sequences may be longer than the training length where no positions are learned") {
  const int64_t length = 45;
  for (ModelConfig config : softmax_configs()) {
    CAPTURE(describe(config));
    config.yarn_scale = 3;
    const LanguageModel model(config, 3, DType::f64);
    spread(model);
    if (config.position == "learned") {
      CHECK_THROWS_WITH_AS(logits_of(model, length), doctest::Contains("model.max_seq_len = 16"), ConfigError);
      continue;
    }
    const ReferenceModel reference(config, ReferenceModel::values_of(model.parameters()));
    std::vector<double> expected;
    for (const auto& row : reference.logits(some_ids(length, config.vocab_size, 3)))
      expected.insert(expected.end(), row.begin(), row.end());
    CHECK(difference_relative_to_max(logits_of(model, length), from_values(expected, {1, length, config.vocab_size}),
                                     1e-11) == "");
  }
}

}  // namespace margay::test
