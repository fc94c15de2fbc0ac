#include "tasks/generate/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/error.h"

namespace margay {
namespace {

constexpr size_t kSortedAtFirst = 64;

void require(bool ok, const char* field, const char* wanted, double got) {
  if (!ok) throw ConfigError(fmt::format("{} must be {}, got {:g}", field, wanted, got));
}

bool is_share(double value) { return value >= 0 && value <= 1; }

}  // namespace

void validate(const SampleOptions& options) {
  require(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0, "repetition_penalty",
          "a number above 0", options.repetition_penalty);
  require(options.temperature >= 0, "temperature", "a number of at least 0", options.temperature);
  require(options.top_k >= 0, "top_k", "at least 0", static_cast<double>(options.top_k));
  require(is_share(options.top_p), "top_p", "from 0 to 1", options.top_p);
  require(is_share(options.min_p), "min_p", "from 0 to 1", options.min_p);
}

int32_t Sampler::draw(std::span<const float> logits, std::span<const int32_t> before, RandomStream& random) {
  if (logits.empty() || !std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); })) {
    throw DivergedError("the model's logits are not finite");
  }
  penalise(logits, before);
  const auto best = std::max_element(scores_.begin(), scores_.end());
  if (options_.temperature == 0) return static_cast<int32_t>(best - scores_.begin());
  weights_.resize(scores_.size());
  std::transform(scores_.begin(), scores_.end(), weights_.begin(),
                 [&, most = *best](double score) { return std::exp((score - most) / options_.temperature); });

  kept_.resize(scores_.size());
  std::iota(kept_.begin(), kept_.end(), 0);
  keep_top_k();
  keep_top_p();
  std::erase_if(kept_, [&](int32_t token) { return weights_[token] < options_.min_p; });
  if (!std::is_sorted(kept_.begin(), kept_.end())) std::sort(kept_.begin(), kept_.end());

  double left = random.uniform64() * sum_of_kept();
  int32_t drawn = kept_.front();
  for (const int32_t token : kept_) {
    if (weights_[token] == 0) continue;
    drawn = token;  // the last one also takes what rounding leaves over
    left -= weights_[token];
    if (left < 0) break;
  }
  return drawn;
}

void Sampler::penalise(std::span<const float> logits, std::span<const int32_t> before) {
  scores_.assign(logits.begin(), logits.end());
  const double theta = options_.repetition_penalty;
  if (theta == 1) return;
  for (const int32_t token : before) {  // from the logit itself: once, however often it occurred
    const double logit = logits[token];
    scores_[token] = logit > 0 ? logit / theta : logit * theta;
  }
}

void Sampler::keep_top_k() {
  if (options_.top_k == 0 || options_.top_k >= static_cast<int64_t>(kept_.size())) return;
  const auto end = kept_.begin() + options_.top_k;
  std::nth_element(kept_.begin(), end - 1, kept_.end(), [this](int32_t a, int32_t b) { return likelier(a, b); });
  kept_.erase(end, kept_.end());
  std::sort(kept_.begin(), kept_.end());  // sums do not depend on how a library partitions
}

void Sampler::keep_top_p() {
  if (options_.top_p == 1) return;
  const double wanted = options_.top_p * sum_of_kept();
  double sum = 0;
  size_t count = 0, sorted = 0;  // few of many are kept: no more are sorted than that takes
  do {
    if (count == sorted) {
      const size_t more = std::min(kept_.size(), std::max(kSortedAtFirst, 2 * sorted));
      std::partial_sort(kept_.begin() + static_cast<std::ptrdiff_t>(sorted),
                        kept_.begin() + static_cast<std::ptrdiff_t>(more), kept_.end(),
                        [this](int32_t a, int32_t b) { return likelier(a, b); });
      sorted = more;
    }
    sum += weights_[kept_[count++]];
  } while (sum < wanted && count < kept_.size());
  kept_.resize(count);
}

double Sampler::sum_of_kept() const {
  return std::accumulate(kept_.begin(), kept_.end(), 0.0,
                         [this](double sum, int32_t token) { return sum + weights_[token]; });
}

}  // namespace margay
