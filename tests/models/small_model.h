#pragma once
#include <cstdint>
#include <vector>

#include "models/language_model.h"

namespace margay::test {

/// One layer of two heads over 23 tokens, for sequences of 16.
ModelConfig small_config();

/// Moves weights far from their small initial values, so that every path matters.
void spread(const LanguageModel& model);

std::vector<int32_t> some_ids(int64_t length, int64_t vocabulary, uint64_t seed);

}  // namespace margay::test
