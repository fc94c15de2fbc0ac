#include "tests/models/reference_model.h"

#include <algorithm>
#include <cmath>

namespace margay::test {
namespace {

using Rows = ReferenceModel::Rows;

void add_to(Rows& x, const Rows& y) {
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < x[t].size(); ++c) x[t][c] += y[t][c];
}

double silu(double x) { return x / (1 + std::exp(-x)); }

bool has_cat_front(const std::string& kind) { return kind == "cat" || kind == "lincat" || kind == "lcat"; }

}  // namespace

void ReferenceModel::normalise(double* x, size_t n) {
  double squares = 0;
  for (size_t c = 0; c < n; ++c) squares += x[c] * x[c];
  const double norm = std::max(std::sqrt(squares), 1e-12);
  for (size_t c = 0; c < n; ++c) x[c] /= norm;
}

ReferenceModel::Values ReferenceModel::values_of(const Parameters& parameters) {
  Values values;
  for (const Parameter& p : parameters) values[p.name] = p.value.detach().to(DType::f64).to_vector<double>();
  return values;
}

Rows ReferenceModel::linear(const Rows& x, const std::string& name) const {
  const auto& weight = at(name + ".weight");
  const size_t in = x[0].size(), out = weight.size() / in;
  Rows y(x.size(), std::vector<double>(out));
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t o = 0; o < out; ++o) {
      double sum = has(name + ".bias") ? at(name + ".bias")[o] : 0;
      for (size_t i = 0; i < in; ++i) sum += weight[o * in + i] * x[t][i];
      y[t][o] = sum;
    }
  return y;
}

Rows ReferenceModel::layer_norm(const Rows& x, const std::string& name) const {
  const auto &weight = at(name + ".weight"), &bias = at(name + ".bias");
  Rows y = x;
  for (auto& row : y) {
    const auto n = static_cast<double>(row.size());
    double mean = 0, variance = 0;
    for (const double v : row) mean += v / n;
    for (const double v : row) variance += (v - mean) * (v - mean) / n;
    for (size_t c = 0; c < row.size(); ++c) row[c] = (row[c] - mean) / std::sqrt(variance + 1e-5) * weight[c] + bias[c];
  }
  return y;
}

// The filter of one letter; `only_head` >= 0 applies that head's filter to every channel.
Rows ReferenceModel::filter(const Rows& x, const std::string& name, int64_t only_head) const {
  const auto& weight = at(name + ".weight");
  const auto width = static_cast<size_t>(config_.cat.conv_width);
  const size_t channels = x[0].size(), groups = weight.size() / width;
  Rows y = x;
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t c = 0; c < channels; ++c) {
      const size_t group = only_head >= 0 ? static_cast<size_t>(only_head) : c / (channels / groups);
      double sum = has(name + ".bias") ? at(name + ".bias")[c] : 0;
      for (size_t w = 0; w < width && w <= t; ++w) sum += weight[group * width + w] * x[t - w][c];
      y[t][c] = sum;
    }
  return y;
}

Rows ReferenceModel::project(const Rows& x, const std::string& mixer, char letter) const {
  return config_.backbone == "gpt_neox" ? neox_letter(x, mixer, letter) : linear(x, mixer + "." + letter + "_proj");
}

// q, k or v before heads are split.
Rows ReferenceModel::letter(const Rows& x, const std::string& mixer, char letter, const std::string& kind) const {
  const std::string conv = mixer + ".conv_" + letter;
  const bool filtered = has_cat_front(kind) && config_.cat.conv_on.find(letter) != std::string::npos;
  const bool unit_rows = has_cat_front(kind) && config_.cat.qk_norm == "l2_input" && letter != 'v';
  const auto rows = [&](Rows u) {
    if (unit_rows)
      for (auto& row : u) normalise(row.data(), row.size());
    return u;
  };
  if (!filtered) return project(rows(x), mixer, letter);
  if (config_.cat.conv_site == "post") return filter(project(rows(x), mixer, letter), conv, -1);
  if (config_.cat.conv_sharing != "per_head") return project(rows(filter(x, conv, -1)), mixer, letter);
  Rows joined(x.size(), std::vector<double>(x[0].size()));
  const size_t head_dim = x[0].size() / static_cast<size_t>(config_.n_heads);
  for (int64_t h = 0; h < config_.n_heads; ++h) {
    const Rows y = project(rows(filter(x, conv, h)), mixer, letter);
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t c = static_cast<size_t>(h) * head_dim; c < static_cast<size_t>(h + 1) * head_dim; ++c)
        joined[t][c] = y[t][c];
  }
  return joined;
}

void ReferenceModel::rotate(std::vector<double>& head, int64_t position) const {
  if (config_.position != "rope") return;
  const int64_t r = 2 * static_cast<int64_t>(config_.rope_fraction * static_cast<double>(head.size()) / 2);
  const double s = config_.yarn_scale, base = config_.rope_base, pi = 3.14159265358979323846;
  const auto correction = [&](double turns) {
    return static_cast<double>(r) * std::log(static_cast<double>(config_.max_seq_len) / (2 * pi * turns)) /
           (2 * std::log(base));
  };
  const double low = std::max(std::floor(correction(32)), 0.0);
  double high = std::min(std::ceil(correction(1)), static_cast<double>(r - 1));
  if (high == low) high += 0.001;
  for (int64_t i = 0; i < r / 2; ++i) {
    double theta = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(r));
    if (s != 1) {
      const double rho = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      theta = (1 - rho) * theta + rho * theta / s;
    }
    const double angle = theta * static_cast<double>(position);
    double &a = head[static_cast<size_t>(i)], &b = head[static_cast<size_t>(i + r / 2)];
    const double x = a, y = b;
    a = x * std::cos(angle) - y * std::sin(angle);
    b = y * std::cos(angle) + x * std::sin(angle);
  }
}

Rows ReferenceModel::mixer(const Rows& x, const std::string& name, const std::string& kind) const {
  if (kind == "base_conv") return base_conv(x, name);
  if (kind == "hyena") return hyena(x, name);
  if (kind == "s4d") return s4d(x, name);
  if (kind == "h3") return h3(x, name);
  if (kind == "linear_attention" || kind == "lincat" || kind == "based") return linear_attention(x, name, kind);
  if (kind == "delta_net" || kind == "gated_delta_net" || kind == "gla" || kind == "retnet")
    return delta_rule(x, name, kind);
  if (kind == "lcat") return landmark_attention(x, name);
  if (kind == "mamba") return mamba(x, name);
  if (kind == "mamba2") return mamba2(x, name);
  if (kind == "rwkv") return rwkv(x, name);
  return softmax_attention(x, name, kind);
}

// The part of row t that belongs to one head.
std::vector<double> ReferenceModel::head_of(const Rows& rows, size_t t, size_t head) const {
  const size_t width = rows[t].size() / static_cast<size_t>(config_.n_heads);
  return {rows[t].begin() + static_cast<long>(head * width), rows[t].begin() + static_cast<long>((head + 1) * width)};
}

Rows ReferenceModel::softmax_attention(const Rows& x, const std::string& name, const std::string& kind) const {
  const Rows q = letter(x, name, 'q', kind), k = letter(x, name, 'k', kind), v = letter(x, name, 'v', kind);
  const auto heads = static_cast<size_t>(config_.n_heads), length = x.size(), head_dim = x[0].size() / heads;
  const bool unit_heads = kind == "cat" && config_.cat.qk_norm == "l2_head";
  const double temperature = config_.yarn_scale == 1 ? 1 : std::pow(0.1 * std::log(config_.yarn_scale) + 1, 2);
  Rows joined(length, std::vector<double>(x[0].size(), 0.0));
  for (size_t h = 0; h < heads; ++h) {
    const auto key_or_query = [&](const Rows& rows, size_t t) {
      std::vector<double> head = head_of(rows, t, h);
      if (unit_heads) normalise(head.data(), head_dim);
      rotate(head, static_cast<int64_t>(t));
      return head;
    };
    double scale = unit_heads ? at(name + ".beta")[h] : 1 / std::sqrt(static_cast<double>(head_dim));
    scale *= temperature;
    for (size_t t = 0; t < length; ++t) {
      const auto query = key_or_query(q, t);
      const auto window = static_cast<size_t>(config_.attention.window);
      const size_t first = kind == "attention" && window > 0 && t > window ? t - window : 0;
      std::vector<double> weights;
      for (size_t s = first; s <= t; ++s) {
        const auto key = key_or_query(k, s);
        double score = 0;
        for (size_t c = 0; c < head_dim; ++c) score += query[c] * key[c];
        weights.push_back(score * scale);
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& w : weights) sum += w = std::exp(w - largest);
      for (size_t s = first; s <= t; ++s) {
        const auto value = head_of(v, s, h);
        for (size_t c = 0; c < head_dim; ++c) joined[t][h * head_dim + c] += weights[s - first] / sum * value[c];
      }
    }
  }
  return linear(joined, name + (config_.backbone == "gpt_neox" ? ".dense" : ".out_proj"));
}

Rows ReferenceModel::mlp(const Rows& x, const std::string& name) const {
  if (config_.mlp == "identity") return x;
  Rows h = linear(x, name + ".fc1");
  for (auto& row : h) {
    if (config_.mlp == "swiglu") {
      const size_t m = row.size() / 2;
      for (size_t c = 0; c < m; ++c) row[c] = silu(row[c]) * row[c + m];
      row.resize(m);
    } else {
      for (double& v : row) v = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    }
  }
  return linear(h, name + ".fc2");
}

Rows ReferenceModel::embedded(const std::vector<int32_t>& ids, const std::string& tokens) const {
  const auto width = static_cast<size_t>(config_.d_model);
  Rows r;
  for (size_t t = 0; t < ids.size(); ++t) {
    const auto token = static_cast<size_t>(ids[t]);
    std::vector<double> row(width);
    for (size_t c = 0; c < width; ++c) {
      row[c] = at(tokens)[token * width + c];
      if (config_.position == "learned") row[c] += at("pos_embed.weight")[t * width + c];
    }
    r.push_back(row);
  }
  return r;
}

Rows ReferenceModel::head(const Rows& x, const std::string& weight) const {
  const auto width = static_cast<size_t>(config_.d_model), vocabulary = static_cast<size_t>(config_.vocab_size);
  Rows result(x.size(), std::vector<double>(vocabulary, 0.0));
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t v = 0; v < vocabulary; ++v)
      for (size_t c = 0; c < width; ++c) result[t][v] += x[t][c] * at(weight)[v * width + c];
  return result;
}

Rows ReferenceModel::logits(const std::vector<int32_t>& ids) const {
  if (config_.backbone == "gpt_neox") return neox_logits(ids);
  Rows r = embedded(ids, "embed.weight");
  for (int64_t i = 0; i < config_.n_layers; ++i) {
    const std::string block = "blocks." + std::to_string(i);
    const std::string& kind = config_.mixer_of(i);
    const bool is_mamba = kind == "mamba" || kind == "mamba2";
    const Rows x = is_mamba ? rms_norm(r, block + ".norm1") : layer_norm(r, block + ".norm1");
    add_to(r, mixer(x, block + ".mixer", kind));
    if (is_mamba) continue;
    if (config_.mlp != "none") add_to(r, mlp(layer_norm(r, block + ".norm2"), block + ".mlp"));
  }
  const Rows out = config_.final_norm == "rms_norm" ? rms_norm(r, "final_norm") : layer_norm(r, "final_norm");
  return head(out, has("head.weight") ? "head.weight" : "embed.weight");
}

double ReferenceModel::loss(const std::vector<int32_t>& ids, const std::vector<int32_t>& targets) const {
  const Rows all = logits(ids);
  double total = 0, count = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    if (targets[t] < 0) continue;
    const double largest = *std::max_element(all[t].begin(), all[t].end());
    double sum = 0;
    for (const double logit : all[t]) sum += std::exp(logit - largest);
    total += largest + std::log(sum) - all[t][static_cast<size_t>(targets[t])];
    count += 1;
  }
  return total / count;
}

}  // namespace margay::test
