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

// A projection's filter of 4 taps, then silu.
ReferenceModel::Rows ReferenceModel::filtered(const Rows& x, const std::string& name) const {
  const auto& taps = at(name + ".weight");
  Rows y = x;
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < x[t].size(); ++c) {
      double sum = 0;
      for (size_t w = 0; w < 4 && w <= t; ++w) sum += taps[c * 4 + w] * x[t - w][c];
      y[t][c] = sum / (1 + std::exp(-sum));
    }
  return y;
}

// S_t = a_t S_{t-1} - b_t (a_t S_{t-1} k_t) k_t^T + b_t v_t k_t^T with the decays and steps of the four mixers.
ReferenceModel::Rows ReferenceModel::delta_rule(const Rows& x, const std::string& name, const std::string& kind) const {
  const bool delta = kind == "delta_net" || kind == "gated_delta_net", gated = kind == "gated_delta_net";
  Rows q = linear(x, name + ".q_proj"), k = linear(x, name + ".k_proj"), v = linear(x, name + ".v_proj");
  if (delta) q = filtered(q, name + ".conv_q"), k = filtered(k, name + ".conv_k"), v = filtered(v, name + ".conv_v");
  const Rows step = delta ? linear(x, name + ".beta_proj") : x, rate = gated ? linear(x, name + ".a_proj") : x;
  const Rows forget = kind == "gla" ? linear(linear(x, name + ".gate.fc1"), name + ".gate.fc2") : x;
  const auto sigmoid = [](double u) { return 1 / (1 + std::exp(-u)); };
  const auto heads = static_cast<size_t>(config_.n_heads), width = v[0].size() / heads, keys = k[0].size() / heads;
  Rows joined(x.size(), std::vector<double>(v[0].size(), 0.0));
  for (size_t h = 0; h < heads; ++h) {
    Rows state(width, std::vector<double>(keys, 0.0));
    for (size_t t = 0; t < x.size(); ++t) {
      auto query = head_of(q, t, h), key = head_of(k, t, h), value = head_of(v, t, h);
      if (delta) normalise(query.data(), keys), normalise(key.data(), keys);
      const double b = delta ? sigmoid(step[t][h]) : 1;
      double squares = 0;
      for (size_t c = 0; c < width; ++c) {
        double held = 0, y = 0;
        for (size_t d = 0; d < keys; ++d) {
          double decay = 1;
          if (kind == "retnet") decay = 1 - std::pow(2.0, -5.0 - static_cast<double>(h));
          if (kind == "gla") decay = std::pow(sigmoid(forget[t][h * keys + d]), 1.0 / 16);
          if (gated)
            decay = std::exp(-std::exp(at(name + ".A_log")[h]) *
                             std::log1p(std::exp(rate[t][h] + at(name + ".dt_bias")[h])));
          state[c][d] *= decay;
          held += state[c][d] * key[d];
        }
        for (size_t d = 0; d < keys; ++d) {
          state[c][d] += b * (value[c] - (delta ? held : 0)) * key[d];
          y += state[c][d] * query[d];
        }
        joined[t][h * width + c] = y;
        squares += y * y / static_cast<double>(width);
      }
      for (size_t c = 0; c < width; ++c)
        joined[t][h * width + c] *= at(name + ".norm.weight")[c] / std::sqrt(squares + 1e-5);
    }
  }
  if (gated) {
    const Rows gate = linear(x, name + ".gate");
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t c = 0; c < gate[t].size(); ++c) joined[t][c] *= gate[t][c] * sigmoid(gate[t][c]);
  }
  return linear(joined, name + ".out_proj");
}

}  // namespace margay::test
