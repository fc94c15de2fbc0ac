#include "models/init.h"

#include <algorithm>
#include <cmath>

namespace margay::init {

Initializer constant(double value) {
  return [value](RandomStream&, int64_t) { return value; };
}

Initializer normal(double std) {
  return [std](RandomStream& random, int64_t) { return std * random.normal(); };
}

Initializer uniform(double bound) {
  return [bound](RandomStream& random, int64_t) { return bound * (2 * random.uniform64() - 1); };
}

Initializer identity_filter(int64_t width, double std) {
  return [width, std](RandomStream& random, int64_t index) {
    return (index % width == 0 ? 1.0 : 0.0) + std * random.normal();
  };
}

Initializer uniform_by_fan_in(int64_t fan_in) { return uniform(1 / std::sqrt(static_cast<double>(fan_in))); }

Initializer small(int64_t d_model) { return normal(std::sqrt(2 / (5 * static_cast<double>(d_model)))); }

Initializer wang(int64_t d_model, int64_t n_layers) {
  return normal(2 / (static_cast<double>(n_layers) * std::sqrt(static_cast<double>(d_model))));
}

Initializer log_of_uniform(double low, double high) {
  return [low, high](RandomStream& random, int64_t) { return std::log(low + (high - low) * random.uniform64()); };
}

Initializer log_of_count(int64_t period) {
  return [period](RandomStream&, int64_t index) { return std::log(static_cast<double>(index % period + 1)); };
}

Initializer inverse_softplus_of_log_uniform(double low, double high, double floor) {
  return [=](RandomStream& random, int64_t) {
    const double value = std::max(floor, low * std::pow(high / low, random.uniform64()));
    return value + std::log(-std::expm1(-value));
  };
}

}  // namespace margay::init
