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

}  // namespace margay::test
