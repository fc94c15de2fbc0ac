#include "tests/models/small_model.h"

#include "engine/device.h"
#include "engine/rng.h"
#include "tests/support/compare.h"

namespace margay::test {

ModelConfig small_config() {
  ModelConfig config;
  config.d_model = 12;
  config.n_heads = 2;
  config.n_layers = 1;
  config.vocab_size = 23;
  config.max_seq_len = 16;
  return config;
}

void spread(const LanguageModel& model) {
  for (const Parameter& p : model.parameters()) {
    const Tensor noise = random_uniform(p.value.shape(), hash_name(p.name), -0.6, 0.6, p.value.dtype());
    backend({}).accumulate(p.value.region(), noise.region());
  }
}

std::vector<int32_t> some_ids(int64_t length, int64_t vocabulary, uint64_t seed) {
  RandomStream random(seed, 0);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < length; ++t)
    ids.push_back(static_cast<int32_t>(random.below(static_cast<uint32_t>(vocabulary))));
  return ids;
}

}  // namespace margay::test
