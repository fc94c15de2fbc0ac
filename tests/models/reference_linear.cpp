// The linear-attention mixers of the reference model: token by token, as a recurrence over the sums.

#include <cmath>

#include "tests/models/reference_model.h"

namespace margay::test {
namespace {

// All features of x, none merged: taylor2 has every ordered pair of its second order.
std::vector<double> features_of(const std::string& map, const std::vector<double>& x) {
  std::vector<double> phi;
  const double f = static_cast<double>(x.size());
  if (map == "taylor2") {
    phi.push_back(1);
    for (const double a : x) phi.push_back(a / std::pow(f, 0.25));
    for (const double a : x)
      for (const double b : x) phi.push_back(a * b / (std::sqrt(2.0) * std::sqrt(f)));
    return phi;
  }
  double sum = 0;
  for (const double a : x) {
    phi.push_back(map == "identity" ? a : map == "softmax" ? std::exp(a) : a > 0 ? a + 1 : std::exp(a));
    sum += phi.back();
  }
  if (map == "softmax")
    for (double& value : phi) value /= sum;
  return phi;
}

}  // namespace

ReferenceModel::Rows ReferenceModel::linear_attention(const Rows& x, const std::string& name,
                                                      const std::string& kind) const {
  const bool based = kind == "based", unit_heads = kind == "lincat" && config_.cat.qk_norm == "l2_head";
  const std::string map = based ? "taylor2" : config_.lincat.feature_map;
  const double eps = based ? 1e-12 : 1e-6;
  const Rows q = letter(x, name, 'q', kind), k = letter(x, name, 'k', kind), v = letter(x, name, 'v', kind);
  const auto heads = static_cast<size_t>(config_.n_heads), width = v[0].size() / heads;
  Rows joined(x.size(), std::vector<double>(v[0].size(), 0.0));
  for (size_t h = 0; h < heads; ++h) {
    const auto features = [&](const Rows& rows, size_t t, double factor) {
      std::vector<double> head = head_of(rows, t, h);
      if (unit_heads) normalise(head.data(), head.size());
      if (!based) rotate(head, static_cast<int64_t>(t));
      for (double& value : head) value *= factor;
      return features_of(map, head);
    };
    Rows sums;  // of phi(k) v^T
    std::vector<double> total;
    for (size_t t = 0; t < x.size(); ++t) {
      const auto phi_q = features(q, t, unit_heads ? at(name + ".beta")[h] : 1), phi_k = features(k, t, 1);
      const auto value = head_of(v, t, h);
      sums.resize(phi_k.size(), std::vector<double>(width, 0.0));
      total.resize(phi_k.size(), 0.0);
      double weight = eps;
      for (size_t d = 0; d < phi_k.size(); ++d) {
        for (size_t c = 0; c < width; ++c) sums[d][c] += phi_k[d] * value[c];
        total[d] += phi_k[d];
        weight += phi_q[d] * total[d];
      }
      if (map == "identity") weight = 1;
      for (size_t d = 0; d < phi_q.size(); ++d)
        for (size_t c = 0; c < width; ++c) joined[t][h * width + c] += phi_q[d] * sums[d][c] / weight;
    }
  }
  return linear(joined, name + ".out_proj");
}

}  // namespace margay::test
