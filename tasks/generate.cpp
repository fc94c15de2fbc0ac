#include "tasks/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/error.h"

namespace margay {

int32_t sample_token(std::span<const float> logits, const SampleOptions& options, RandomStream& random) {
  if (logits.empty() || !std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); })) {
    throw DivergedError("the model's logits are not finite");
  }
  std::vector<int32_t> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  std::stable_sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (options.temperature == 0) return tokens.front();
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(tokens.size())) tokens.resize(options.top_k);

  std::vector<double> cumulative;  // of the probabilities, not normalised
  double sum = 0;
  for (const int32_t token : tokens) {
    sum += std::exp((double{logits[token]} - double{logits[tokens.front()]}) / options.temperature);
    cumulative.push_back(sum);
  }
  // The first token always stays, however small top_p is.
  const auto kept = std::lower_bound(cumulative.begin(), cumulative.end() - 1, options.top_p * sum);
  const double point = random.uniform64() * *kept;
  return tokens[std::upper_bound(cumulative.begin(), kept, point) - cumulative.begin()];
}

}  // namespace margay
