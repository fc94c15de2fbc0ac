#pragma once
#include <cstdint>
#include <span>

#include "engine/rng.h"

namespace margay {

/// How to draw a token from logits.
struct SampleOptions {
  double temperature = 1;  ///< divides the logits; 0 = always the likeliest
  int64_t top_k = 0;       ///< only the k likeliest; 0 = all
  double top_p = 1;        ///< only the likeliest, as many as it takes to reach this probability
};

/// Draws a token: temperature first, then top_k, then top_p, then one uniform number of `random` over what is left, in
/// the order of falling probability (equal ones by rising id). Throws DivergedError for logits that are not finite.
int32_t sample_token(std::span<const float> logits, const SampleOptions& options, RandomStream& random);

}  // namespace margay
