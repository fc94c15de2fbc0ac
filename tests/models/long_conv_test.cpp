// The mixers made of long convolutions, at lengths that go through Fourier transforms: step mode against the whole
// sequence, causality up to rounding, and what is refused.

#include <doctest/doctest.h>

#include <cmath>

#include "engine/autograd.h"
#include "engine/error.h"
#include "models/language_model.h"
#include "ops/view.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr int64_t kLength = 300;

ModelConfig config_of(const char* mixer) {
  ModelConfig config;
  config.mixer = {mixer};
  config.base_conv.kernel_size = {-1, 3};
  config.d_model = 20;
  config.n_layers = 2;
  config.vocab_size = 23;
  config.max_seq_len = kLength;
  config.s4d.d_state = 8;
  config.h3.d_state = 70;
  return config;
}

std::vector<int32_t> some_ids(uint64_t seed) {
  RandomStream random(seed, 0);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < kLength; ++t) ids.push_back(static_cast<int32_t>(random.below(23)));
  return ids;
}

void spread(const LanguageModel& model) {
  for (const Parameter& p : model.parameters()) {
    const Tensor noise = random_uniform(p.value.shape(), hash_name(p.name), -0.5, 0.5, p.value.dtype());
    backend({}).accumulate(p.value.region(), noise.region());
  }
}

template <class Check>
void for_every_mixer(const Check& check) {
  const NoGrad no_grad;
  for (const char* mixer : {"base_conv", "hyena", "s4d", "h3"}) {
    CAPTURE(mixer);
    check(config_of(mixer));
  }
}

}  // namespace

TEST_CASE("long mixers: token by token gives what the whole sequence gives") {
  for_every_mixer([](const ModelConfig& config) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      const LanguageModel model(config, 11, dtype);
      spread(model);
      const Tensor ids = from_values(some_ids(8), {1, kLength});
      const Tensor expected = model.logits(ids);
      ModelState state = model.start(1);
      int64_t seen = 0;
      for (const int64_t stretch : {200, 1, 1, 90, 1, 1, 1, 5}) {
        const Tensor logits = model.step(slice(ids, 1, seen, seen + stretch), state);
        seen += stretch;
        CHECK(difference_relative_to_max(logits, select(expected, 1, seen - 1), dtype == DType::f64 ? 1e-11 : 1e-4) ==
              "");
      }
      CHECK(seen == kLength);
    }
  });
}

TEST_CASE("long mixers: inputs that no filter reaches any more are forgotten rightly") {
  const NoGrad no_grad;
  for (const char* mixer : {"base_conv", "hyena", "h3"}) {
    CAPTURE(mixer);
    ModelConfig config = config_of(mixer);
    config.max_seq_len = 20;
    config.h3.d_state = 10;
    const LanguageModel model(config, 11, DType::f64);
    spread(model);
    const Tensor ids = from_values(some_ids(8), {1, kLength});
    const Tensor expected = model.logits(ids);
    ModelState state = model.start(1);
    for (int64_t t = 0; t < kLength; ++t) {
      const Tensor logits = model.step(slice(ids, 1, t, t + 1), state);
      CHECK(difference_relative_to_max(logits, select(expected, 1, t), 1e-11) == "");
    }
  }
}

TEST_CASE("long mixers: a changed token changes nothing before it beyond rounding") {
  for_every_mixer([](const ModelConfig& config) {
    const LanguageModel model(config, 11);
    spread(model);
    std::vector<int32_t> ids = some_ids(8);
    const auto before = model.logits(from_values(ids, {1, kLength})).to_vector<float>();
    double largest = 0;
    for (const float v : before) largest = std::max(largest, std::fabs(double{v}));
    for (const size_t t : {1, 150, 299}) {
      std::vector<int32_t> changed = ids;
      changed[t] = (changed[t] + 5) % 23;
      const auto after = model.logits(from_values(changed, {1, kLength})).to_vector<float>();
      double change = 0;
      for (size_t i = 0; i < t * 23; ++i) change = std::max(change, std::fabs(double{after[i]} - double{before[i]}));
      CHECK(change <= 1e-5 * largest);
      CHECK(after[t * 23] != before[t * 23]);
    }
  });
}

TEST_CASE("long mixers: sizes that do not fit are refused by name") {
  const auto refused = [](const char* key, const char* mixer, const auto& change) {
    ModelConfig config = config_of(mixer);
    change(config);
    CHECK_THROWS_WITH_AS(LanguageModel(config, 5), doctest::Contains(key), ConfigError);
  };
  refused("model.hyena.filter_embed", "hyena", [](ModelConfig& c) { c.hyena.filter_embed = 4; });
  refused("model.hyena.filter_embed", "hyena", [](ModelConfig& c) { c.hyena.filter_embed = 1; });
  refused("model.s4d.d_state", "s4d", [](ModelConfig& c) { c.s4d.d_state = 5; });
  refused("model.h3.d_state", "h3", [](ModelConfig& c) { c.h3.d_state = 5; });
  refused("model.h3.head_dim", "h3", [](ModelConfig& c) { c.h3.head_dim = 3; });
}

TEST_CASE("long mixers: initial weights follow the published rules") {
  const auto values = [](const LanguageModel& model, const std::string& name) {
    for (const Parameter& p : model.parameters())
      if (p.name == "blocks.0.mixer." + name) return p.value.to_vector<float>();
    FAIL("no parameter " << name);
    return std::vector<float>();
  };
  const auto deviation = [](const std::vector<float>& v) {
    double squares = 0;
    for (const float x : v) squares += double{x} * double{x};
    return std::sqrt(squares / static_cast<double>(v.size()));
  };
  ModelConfig config = config_of("s4d");
  config.d_model = 64;
  const LanguageModel s4d(config, 3);
  CHECK(deviation(values(s4d, "C")) == doctest::Approx(std::sqrt(0.5)).epsilon(0.08));
  CHECK(deviation(values(s4d, "out_proj.weight")) == doctest::Approx(0.02).epsilon(0.05));
  for (const float v : values(s4d, "log_dt")) CHECK((v >= std::log(0.001F) && v <= std::log(0.1F)));
  CHECK(values(s4d, "A_imag")[5] == doctest::Approx(3.14159265).epsilon(1e-6));  // pair 1 of model 1
  config.s4d.init = "inv";
  CHECK(values(LanguageModel(config, 3), "A_imag")[1] == doctest::Approx(8 / 3.14159265 * (8.0 / 3 - 1)).epsilon(1e-6));
  config.s4d.init = "real";
  CHECK(values(LanguageModel(config, 3), "A_imag")[3] == 0);
  CHECK(values(LanguageModel(config, 3), "log_A_real")[3] == doctest::Approx(std::log(4.0)));
  config.mixer = {"hyena"};
  const LanguageModel hyena(config, 3);
  CHECK(deviation(values(hyena, "D")) == doctest::Approx(1).epsilon(0.3));
  CHECK(deviation(values(hyena, "out_proj.weight")) == doctest::Approx(0.01).epsilon(0.05));
  CHECK(deviation(values(hyena, "in_proj.weight")) == doctest::Approx(0.02).epsilon(0.05));
  CHECK(deviation(values(hyena, "short_conv.weight")) == doctest::Approx(1.0 / 3).epsilon(0.1));
  CHECK(deviation(values(hyena, "filter.freq")) == 1);
}

}  // namespace margay::test
