// The recurrent mixers of the reference model.

#include <cmath>

#include "tests/models/reference_model.h"

namespace margay::test {
namespace {

using Rows = ReferenceModel::Rows;

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return std::log1p(std::exp(x)); }

// Columns [begin, end) of every row.
Rows columns(const Rows& x, size_t begin, size_t end) {
  Rows y;
  for (const auto& row : x)
    y.emplace_back(row.begin() + static_cast<std::ptrdiff_t>(begin), row.begin() + static_cast<std::ptrdiff_t>(end));
  return y;
}

// silu of a causal filter for every channel, with its bias.
Rows silu_of_filter(const Rows& x, const std::vector<double>& weight, const std::vector<double>& bias) {
  Rows y = x;
  const size_t width = weight.size() / x[0].size();
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < x[t].size(); ++c) {
      double sum = bias[c];
      for (size_t w = 0; w < width && w <= t; ++w) sum += weight[c * width + w] * x[t - w][c];
      y[t][c] = silu(sum);
    }
  return y;
}

}  // namespace

Rows ReferenceModel::rms_norm(const Rows& x, const std::string& name) const {
  const auto& weight = at(name + ".weight");
  Rows y = x;
  for (auto& row : y) {
    double mean_square = 0;
    for (const double v : row) mean_square += v * v / static_cast<double>(row.size());
    for (size_t c = 0; c < row.size(); ++c) row[c] *= weight[c] / std::sqrt(mean_square + 1e-5);
  }
  return y;
}

Rows ReferenceModel::mamba(const Rows& input, const std::string& name) const {
  const auto E = static_cast<size_t>(config_.mamba.expand * config_.d_model);
  const auto N = static_cast<size_t>(config_.mamba.d_state), R = static_cast<size_t>((config_.d_model + 15) / 16);
  const Rows xz = linear(input, name + ".in_proj");
  const Rows x = silu_of_filter(columns(xz, 0, E), at(name + ".conv1d.weight"), at(name + ".conv1d.bias"));
  const Rows selected = linear(x, name + ".x_proj");
  const Rows step = linear(columns(selected, 0, R), name + ".dt_proj");
  Rows y(x.size(), std::vector<double>(E));
  for (size_t e = 0; e < E; ++e) {
    std::vector<double> h(N, 0.0);
    for (size_t t = 0; t < x.size(); ++t) {
      const double dt = softplus(step[t][e]);
      double sum = at(name + ".D")[e] * x[t][e];
      for (size_t n = 0; n < N; ++n) {
        const double A = -std::exp(at(name + ".A_log")[e * N + n]);
        h[n] = std::exp(dt * A) * h[n] + dt * selected[t][R + n] * x[t][e];
        sum += selected[t][R + N + n] * h[n];
      }
      y[t][e] = sum * silu(xz[t][E + e]);
    }
  }
  return linear(y, name + ".out_proj");
}

Rows ReferenceModel::mamba2(const Rows& input, const std::string& name) const {
  const auto E = static_cast<size_t>(config_.mamba.expand * config_.d_model);
  const auto N = static_cast<size_t>(config_.mamba.d_state), P = static_cast<size_t>(config_.mamba.head_dim);
  const size_t H = E / P;
  const Rows projected = linear(input, name + ".in_proj");
  const Rows z = columns(projected, 0, E), step = columns(projected, 2 * E + 2 * N, 2 * E + 2 * N + H);
  const Rows xBC =
      silu_of_filter(columns(projected, E, 2 * E + 2 * N), at(name + ".conv1d.weight"), at(name + ".conv1d.bias"));
  Rows y(input.size(), std::vector<double>(E));
  for (size_t e = 0; e < E; ++e) {
    const size_t head = e / P;
    std::vector<double> h(N, 0.0);
    for (size_t t = 0; t < y.size(); ++t) {
      const double dt = softplus(step[t][head] + at(name + ".dt_bias")[head]);
      const double decay = std::exp(-dt * std::exp(at(name + ".A_log")[head]));
      double sum = at(name + ".D")[head] * xBC[t][e];
      for (size_t n = 0; n < N; ++n) {
        h[n] = decay * h[n] + dt * xBC[t][E + n] * xBC[t][e];
        sum += xBC[t][E + N + n] * h[n];
      }
      y[t][e] = sum * silu(z[t][e]);
    }
  }
  return linear(rms_norm(y, name + ".norm"), name + ".out_proj");
}

Rows ReferenceModel::rwkv(const Rows& x, const std::string& name) const {
  const size_t d = x[0].size();
  const auto mixed = [&](const std::string& letter, const std::string& projection) {
    const auto& mix = at(name + ".time_mix_" + letter);
    Rows y = x;
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t c = 0; c < d; ++c) y[t][c] = mix[c] * x[t][c] + (1 - mix[c]) * (t > 0 ? x[t - 1][c] : 0);
    return linear(y, name + "." + projection);
  };
  const Rows k = mixed("k", "key"), v = mixed("v", "value"), r = mixed("r", "receptance");
  Rows y = x;
  for (size_t c = 0; c < d; ++c) {
    const double w = -std::exp(at(name + ".time_decay")[c]), u = at(name + ".time_first")[c];
    for (size_t t = 0; t < x.size(); ++t) {
      double numerator = std::exp(u + k[t][c]) * v[t][c], denominator = std::exp(u + k[t][c]);
      for (size_t i = 0; i < t; ++i) {
        const double weight = std::exp(static_cast<double>(t - 1 - i) * w + k[i][c]);
        numerator += weight * v[i][c];
        denominator += weight;
      }
      y[t][c] = numerator / denominator / (1 + std::exp(-r[t][c]));
    }
  }
  return linear(y, name + ".output");
}

}  // namespace margay::test
