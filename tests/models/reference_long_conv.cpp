// The mixers made of long convolutions and state-space models: convolutions as sums, models as recurrences.

#include <cmath>
#include <complex>

#include "tests/models/reference_model.h"

namespace margay::test {
namespace {

using Rows = ReferenceModel::Rows;

constexpr double kPi = 3.14159265358979323846;

double fraction(size_t i, size_t count) {
  return count == 1 ? 0 : static_cast<double>(i) / static_cast<double>(count - 1);
}

// [position][feature]
Rows features(size_t length, size_t embed) {
  const size_t bands = (embed - 1) / 2;
  Rows z(length);
  for (size_t t = 0; t < length; ++t) {
    z[t].push_back(fraction(t, length));
    for (const bool imaginary : {false, true})
      for (size_t band = 0; band < bands; ++band) {
        const double f = 1e-4 + (static_cast<double>(bands) - 1 - 1e-4) * fraction(band, bands);
        const std::complex<double> wave =
            std::exp(std::complex<double>(0, -2 * kPi * f * static_cast<double>(t) / static_cast<double>(length)));
        z[t].push_back(imaginary ? wave.imag() : wave.real());
      }
  }
  return z;
}

// y[t] = sum of taps[w] x[t - w], taps by [position][channel].
Rows convolve(const Rows& x, const Rows& taps) {
  Rows y(x.size(), std::vector<double>(x[0].size(), 0.0));
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t w = 0; w <= t && w < taps.size(); ++w)
      for (size_t c = 0; c < x[t].size(); ++c) y[t][c] += taps[w][c] * x[t - w][c];
  return y;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Rows ReferenceModel::depthwise(const Rows& x, const std::string& name) const {
  const auto& weight = at(name + ".weight");
  const size_t channels = x[0].size(), width = weight.size() / channels;
  Rows taps(width, std::vector<double>(channels));
  for (size_t w = 0; w < width; ++w)
    for (size_t c = 0; c < channels; ++c) taps[w][c] = weight[c * width + w];
  Rows y = convolve(x, taps);
  for (auto& row : y)
    for (size_t c = 0; c < channels; ++c) row[c] += at(name + ".bias")[c];
  return y;
}

Rows ReferenceModel::base_conv(const Rows& x, const std::string& name) const {
  Rows conv;
  if (has(name + ".conv.weight")) {
    conv = depthwise(x, name + ".conv");
  } else {
    Rows h = linear(features(static_cast<size_t>(config_.max_seq_len), 3), name + ".filter.fc1");
    for (auto& row : h)
      for (double& v : row) v = v > 0 ? v : 0;
    conv = convolve(x, linear(h, name + ".filter.fc2"));
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t c = 0; c < x[t].size(); ++c) conv[t][c] += x[t][c];
  }
  Rows y = linear(x, name + ".proj");
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < x[t].size(); ++c) y[t][c] = y[t][c] * conv[t][c] + x[t][c];
  return y;
}

Rows ReferenceModel::hyena(const Rows& x, const std::string& name) const {
  const size_t d = x[0].size(), longest = static_cast<size_t>(config_.max_seq_len);
  Rows h = features(longest, static_cast<size_t>(config_.hyena.filter_embed));
  for (const char* layer : {".filter.fc1", ".filter.fc2", ".filter.fc3"}) {
    h = linear(h, name + layer);
    for (auto& row : h)
      for (size_t c = 0; c < row.size(); ++c) row[c] = std::sin(at(name + ".filter.freq")[c] * row[c]);
  }
  Rows taps = linear(h, name + ".filter.fc4");
  for (size_t t = 0; t < longest; ++t)
    for (size_t c = 0; c < d; ++c) {
      const double slow = std::log(100.0) / 1.5, fast = std::log(100.0) / 0.3;
      taps[t][c] *= std::exp(-fraction(t, longest) * (slow + (fast - slow) * fraction(c, d)));
    }
  const Rows packed = depthwise(linear(x, name + ".in_proj"), name + ".short_conv");
  Rows gated(x.size(), std::vector<double>(d));
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < d; ++c) gated[t][c] = packed[t][2 * d + c] * packed[t][c];
  Rows y = convolve(gated, taps);
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < d; ++c) y[t][c] = (y[t][c] + at(name + ".D")[c] * gated[t][c]) * packed[t][d + c];
  return linear(y, name + ".out_proj");
}

// One channel through model `model`, state by state.
std::vector<double> ReferenceModel::diagonal_ssm(const std::vector<double>& u, const std::string& name, size_t model,
                                                 bool bilinear) const {
  using Number = std::complex<double>;
  const size_t models = at(name + "D").size(), pairs = at(name + "A_imag").size() / models;
  const double dt = std::exp(at(name + "log_dt")[model]);
  std::vector<double> y(u.size());
  for (size_t t = 0; t < u.size(); ++t) y[t] = at(name + "D")[model] * u[t];
  for (size_t n = 0; n < pairs; ++n) {
    const size_t i = model * pairs + n;
    const Number A(-std::exp(at(name + "log_A_real")[i]), at(name + "A_imag")[i]);
    const Number C(at(name + "C")[2 * i], at(name + "C")[2 * i + 1]);
    const Number power = bilinear ? (1.0 + dt * A / 2.0) / (1.0 - dt * A / 2.0) : std::exp(dt * A);
    const Number input = bilinear ? dt / (1.0 - dt * A / 2.0) : (power - 1.0) / A;
    Number h = 0;
    for (size_t t = 0; t < u.size(); ++t) {
      h = power * h + input * u[t];
      y[t] += 2 * (C * h).real();
    }
  }
  return y;
}

Rows ReferenceModel::s4d(const Rows& x, const std::string& name) const {
  const size_t d = x[0].size();
  Rows h(x.size(), std::vector<double>(d));
  for (size_t c = 0; c < d; ++c) {
    std::vector<double> u;
    for (const auto& row : x) u.push_back(row[c]);
    const auto y = diagonal_ssm(u, name + ".", c, config_.s4d.discretization == "bilinear");
    for (size_t t = 0; t < x.size(); ++t) h[t][c] = 0.5 * y[t] * (1 + std::erf(y[t] / std::sqrt(2.0)));
  }
  Rows y = linear(h, name + ".out_proj");
  for (auto& row : y) {
    for (size_t c = 0; c < d; ++c) row[c] *= sigmoid(row[d + c]);
    row.resize(d);
  }
  return y;
}

Rows ReferenceModel::h3(const Rows& x, const std::string& name) const {
  const Rows q = linear(x, name + ".q_proj"), k = linear(x, name + ".k_proj"), v = linear(x, name + ".v_proj");
  const size_t d = x[0].size(), head_dim = static_cast<size_t>(config_.h3.head_dim);
  const auto& shift = at(name + ".shift.C");
  const size_t width = shift.size() / d;
  Rows taps(width, std::vector<double>(d));
  for (size_t w = 0; w < width; ++w)
    for (size_t c = 0; c < d; ++c) taps[w][c] = shift[c * width + w];
  Rows shifted = convolve(k, taps);
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < d; ++c) shifted[t][c] += at(name + ".shift.D")[c] * k[t][c];
  Rows joined(x.size(), std::vector<double>(d, 0.0));
  for (size_t head = 0; head < d / head_dim; ++head)
    for (size_t i = 0; i < head_dim; ++i)
      for (size_t j = 0; j < head_dim; ++j) {
        const size_t from = head * head_dim + i, to = head * head_dim + j;
        std::vector<double> u;
        for (size_t t = 0; t < x.size(); ++t) u.push_back(shifted[t][from] * v[t][to]);
        const auto y = diagonal_ssm(u, name + ".diag.", head, true);
        for (size_t t = 0; t < x.size(); ++t) joined[t][to] += q[t][from] * y[t];
      }
  return linear(joined, name + ".out_proj");
}

}  // namespace margay::test
