// Landmark CAT in the reference model: every token's weights, one after the other.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/models/reference_model.h"

namespace margay::test {
namespace {

double product(const std::vector<double>& x, const std::vector<double>& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// The blocks that are retrieved: the `count` largest logits, of equals the lower block; all for 0.
std::vector<size_t> choose(const std::vector<double>& logits, size_t count) {
  std::vector<size_t> blocks(logits.size());
  std::iota(blocks.begin(), blocks.end(), size_t{0});
  std::stable_sort(blocks.begin(), blocks.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (count > 0 && count < blocks.size()) blocks.resize(count);
  return blocks;
}

}  // namespace

ReferenceModel::Rows ReferenceModel::landmark_attention(const Rows& x, const std::string& name) const {
  const LcatConfig& lcat = config_.lcat;
  Rows q = letter(x, name, 'q', "lcat"), k = letter(x, name, 'k', "lcat");
  const Rows v = letter(x, name, 'v', "lcat");
  const auto heads = static_cast<size_t>(config_.n_heads), width = v[0].size() / heads, length = x.size();
  const auto size = static_cast<size_t>(lcat.block_size), blocks = length / size;
  const bool unit_heads = config_.cat.qk_norm == "l2_head";
  for (Rows* rows : {&q, &k})
    for (size_t t = 0; t < length; ++t)
      for (size_t h = 0; h < heads; ++h) {
        std::vector<double> head = head_of(*rows, t, h);
        if (unit_heads) normalise(head.data(), width);
        rotate(head, static_cast<int64_t>(t));
        std::copy(head.begin(), head.end(), (*rows)[t].begin() + static_cast<long>(h * width));
      }
  const Rows landmark_q = lcat.landmark_query ? linear(q, name + ".landmark_q") : q;
  const Rows landmark_k = lcat.landmark_key ? linear(k, name + ".landmark_k") : k;
  const auto& taps = at(name + ".landmark_conv.weight");
  const double root = std::sqrt(static_cast<double>(width));
  const double temperature = config_.yarn_scale == 1 ? 1 : std::pow(0.1 * std::log(config_.yarn_scale) + 1, 2);
  Rows joined(length, std::vector<double>(v[0].size(), 0.0));
  for (size_t h = 0; h < heads; ++h) {
    Rows landmarks(blocks, std::vector<double>(width, 0.0));
    for (size_t j = 0; j < blocks * size; ++j) {
      const double tap = taps[(lcat.landmark_sharing == "per_head" ? h * size : 0) + size - 1 - j % size];
      for (size_t c = 0; c < width; ++c) landmarks[j / size][c] += tap * landmark_k[j][h * width + c];
    }
    const double scale = temperature * (unit_heads ? at(name + ".beta")[h] : 1 / root);
    for (size_t t = 0; t < length; ++t) {
      const auto score = [&](size_t j) { return std::exp(scale * product(head_of(q, t, h), head_of(k, j, h))); };
      std::vector<double> logits;
      for (size_t m = 0; m < t / size; ++m)
        logits.push_back(at(name + ".landmark_scale")[h] / root * product(head_of(landmark_q, t, h), landmarks[m]) +
                         at(name + ".landmark_bias")[h]);
      std::vector<double> weights(length, 0.0);
      for (size_t j = t / size * size; j <= t; ++j) weights[j] = score(j);
      for (const size_t m : choose(logits, static_cast<size_t>(lcat.top_k))) {
        double inside = 0;
        for (size_t j = m * size; j < (m + 1) * size; ++j) inside += weights[j] = score(j);
        const double factor = lcat.gate == "none"       ? 1
                              : lcat.gate == "additive" ? std::exp(logits[m])
                                                        : std::exp(logits[m]) / inside;
        for (size_t j = m * size; j < (m + 1) * size; ++j) weights[j] *= factor;
      }
      const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (size_t j = 0; j <= t; ++j)
        for (size_t c = 0; c < width; ++c) joined[t][h * width + c] += weights[j] / total * v[j][h * width + c];
    }
  }
  return linear(joined, name + ".out_proj");
}

}  // namespace margay::test
