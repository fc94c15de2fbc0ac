#include "tasks/random_context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "engine/error.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double square(double x) { return x * x; }

void require(bool condition, const char* what, const char* wanted, int64_t got) {
  if (!condition) throw ConfigError(fmt::format("random context: {} must be {}, got {}", what, wanted, got));
}

void check(const RandomContextModel& model) {
  require(model.seq_len >= 2, "seq_len", "at least 2", model.seq_len);
  require(model.d_model >= 1, "d_model", "at least 1", model.d_model);
}

void check(const LandmarkLaw& law) {
  require(law.blocks >= 2, "blocks", "at least 2", law.blocks);
  require(law.block_size >= 1, "block_size", "at least 1", law.block_size);
  require(law.query_dims >= 0, "query_dims", "at least 0", law.query_dims);
}

/// Gamma with shape a >= 1 and scale 1 (Marsaglia and Tsang 2000, "A simple method for generating gamma variables"): a
/// cubed normal, accepted with a probability near 1.
double draw_gamma(double a, RandomStream& random) {
  const double d = a - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
  while (true) {
    const double x = random.normal(), v = square(1 + c * x) * (1 + c * x);
    if (v > 0 && std::log1p(-random.uniform64()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

/// Sum of squares of `count` standard normals.
double draw_chi_square(int64_t count, RandomStream& random) {
  if (count == 0) return 0;
  if (count == 1) return square(random.normal());
  return 2 * draw_gamma(static_cast<double>(count) / 2, random);
}

}  // namespace

RandomContext make_random_context(const RandomContextModel& model, int64_t index, int64_t places) {
  check(model);
  require(places >= 1 && places < model.seq_len, "places", "from 1 to seq_len - 1", places);
  RandomStream random(derived_seed(model.seed, "random_context"), static_cast<uint64_t>(index));
  const auto width = static_cast<size_t>(model.d_model);
  RandomContext context{model.seq_len, model.d_model, {}, 0};
  context.place = static_cast<int64_t>(uniform_below(random, static_cast<uint64_t>(places)));
  const double deviation = std::sqrt(model.variance / static_cast<double>(model.d_model));
  context.rows.resize(static_cast<size_t>(model.seq_len) * width);
  for (float& value : context.rows) value = static_cast<float>(deviation * random.normal());

  std::vector<double> query(width);
  double squared = 0;
  for (double& value : query) squared += square(value = random.normal());
  for (const int64_t position : {context.place, model.seq_len - 1}) {
    float* row = context.rows.data() + static_cast<size_t>(position) * width;
    for (size_t c = 0; c < width; ++c) row[c] = static_cast<float>(query[c] / std::sqrt(squared));
  }
  return context;
}

int64_t landmark_choice(const RandomContext& context, int64_t block_size) {
  require(block_size >= 1 && context.seq_len % block_size == 0 && context.seq_len / block_size >= 2, "block_size",
          "a divisor of seq_len and less than it", block_size);
  const std::span<const float> query = context.query();
  int64_t chosen = 0;
  double best = -kInfinity;
  for (int64_t block = 0; block + 1 < context.seq_len / block_size; ++block) {
    double score = 0;
    for (int64_t i = 0; i < block_size; ++i) {
      const std::span<const float> row = context.row(block * block_size + i);
      for (size_t c = 0; c < row.size(); ++c) score += double{query[c]} * double{row[c]};
    }
    if (score > best) {
      best = score;
      chosen = block;
    }
  }
  return chosen;
}

double draw_needed_dimension(const LandmarkLaw& law, RandomStream& random) {
  check(law);
  const int64_t competitors = law.blocks - 2;
  const auto tokens = static_cast<double>(law.block_size);
  if (competitors == 0) return 0;
  if (law.query_dims == 0) {
    const double target = std::sqrt(tokens - 1) * random.normal();
    const double lead = std::sqrt(tokens) * draw_normal_maximum(competitors, random) - target;
    return law.variance * square(std::max(0.0, lead));
  }
  // Of a competitor's difference to the target only the part along the target's noise and the length of the rest count.
  const double target = std::sqrt((tokens - 1) * draw_chi_square(law.query_dims, random));
  double largest = 0;
  for (int64_t i = 0; i < competitors; ++i) {
    const double along = std::sqrt(tokens) * random.normal() - target;
    largest = std::max(largest, square(along) + tokens * draw_chi_square(law.query_dims - 1, random));
  }
  return law.variance * largest;
}

void append_needed_dimensions(const LandmarkLaw& law, int64_t draws, int64_t seed, std::vector<double>& needed) {
  const uint64_t key = derived_seed(seed, "landmark_law");
  for (auto i = static_cast<int64_t>(needed.size()); i < draws; ++i) {
    RandomStream random(key, static_cast<uint64_t>(i));
    needed.push_back(draw_needed_dimension(law, random));
  }
}

double sufficient_dimension(const LandmarkLaw& law, double delta) {
  const double blocks = std::sqrt(2 * std::log(static_cast<double>(law.blocks)));
  return law.variance * static_cast<double>(law.block_size) * square(blocks + std::sqrt(-2 * std::log(delta)));
}

double predicted_dimension(const LandmarkLaw& law) {
  const double blocks = std::sqrt(2 * std::log(static_cast<double>(law.blocks)));
  const double space = std::sqrt(2 * static_cast<double>(law.query_dims));
  return law.variance * static_cast<double>(law.block_size) * square(space + blocks);
}

double normal_upper_quantile(double p) {
  if (p > 0.5) return -normal_upper_quantile(1 - p);
  // Newton's method on the logarithm of the tail Q, which is concave: from above the root, and Q(z) <= exp(-z^2 / 2) /
  // 2, it falls to it.
  double z = std::sqrt(-2 * std::log(2 * p));
  for (int i = 0; i < 64; ++i) {
    const double tail = 0.5 * std::erfc(z / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
    const double step = std::log(tail / p) * tail / density;
    z += step;
    if (std::abs(step) <= 1e-15 * (1 + z)) break;
  }
  return z;
}

double draw_normal_maximum(int64_t n, RandomStream& random) {
  if (n == 0) return -kInfinity;
  // All n are below z with probability u = (1 - Q(z))^n.
  const double u = random.uniform64() + 0x1p-54;  // never 0
  const double tail = -std::expm1(std::log(u) / static_cast<double>(n));
  return normal_upper_quantile(std::clamp(tail, std::numeric_limits<double>::min(), 1 - 0x1p-53));
}

}  // namespace margay
