#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/rng.h"

namespace margay {

/// How to draw a token from logits. The steps are taken in the order of the fields.
struct SampleOptions {
  /// theta: a token that occurred before has its logit x made x / theta if x > 0, x * theta if not; 1 = off. CTRL
  /// (Keskar et al. 2019, arXiv:1909.05858, section 4.1) divides all logits, which would favour the negative ones.
  double repetition_penalty = 1;
  double temperature = 1;  ///< divides the logits; 0 = always the likeliest, the first of equals
  int64_t top_k = 0;       ///< only the k likeliest; 0 = all
  double top_p = 1;        ///< only the likeliest, as many as it takes to reach this share of what top_k left
  double min_p = 0;        ///< only those at least this many times as likely as the likeliest
};

/// Throws ConfigError naming the first field out of its range: repetition_penalty > 0, temperature and top_k at least
/// 0, top_p and min_p from 0 to 1.
void validate(const SampleOptions& options);

/// Draws tokens. Its memory is used again for every draw.
class Sampler {
 public:
  explicit Sampler(const SampleOptions& options) : options_(options) { validate(options); }

  /// One token, by one uniform number of `random` over what the options leave, in the order of the ids. `before` are
  /// the tokens that repetition_penalty looks at. Throws DivergedError for logits that are not finite.
  int32_t draw(std::span<const float> logits, std::span<const int32_t> before, RandomStream& random);

 private:
  void penalise(std::span<const float> logits, std::span<const int32_t> before);
  void keep_top_k();
  void keep_top_p();
  bool likelier(int32_t a, int32_t b) const { return scores_[a] > scores_[b] || (scores_[a] == scores_[b] && a < b); }
  double sum_of_kept() const;

  SampleOptions options_;
  std::vector<double> scores_, weights_;  // by id; weights are exp(score / temperature), the largest 1
  std::vector<int32_t> kept_;             // ids; by falling score while they are chosen, at last rising
};

}  // namespace margay
