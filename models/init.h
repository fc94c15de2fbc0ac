#pragma once
#include <cstdint>
#include <functional>

#include "engine/rng.h"
#include "engine/shape.h"

namespace margay {

/// The initial value of element `index` (row-major) of a parameter, from the parameter's own random stream, which is
/// asked for the elements in order.
using Initializer = std::function<double(RandomStream&, int64_t index)>;

namespace init {

Initializer constant(double value);
inline Initializer zeros() { return constant(0); }
inline Initializer ones() { return constant(1); }
/// N(0, std^2).
Initializer normal(double std);
/// U(-bound, bound).
Initializer uniform(double bound);
/// Filters of `width` taps that pass the current token: 1 at tap 0, plus N(0, std^2) everywhere.
Initializer identity_filter(int64_t width, double std);
/// U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
Initializer uniform_by_fan_in(int64_t fan_in);
/// N(0, 2 / (5 d)) for the weights of a model of width d (Nguyen & Salazar 2019, arXiv:1910.05895), and N(0, (2 / (n
/// sqrt(d)))^2) for projections back into the residual stream of n layers: the rules of GPT-NeoX.
Initializer small(int64_t d_model);
Initializer wang(int64_t d_model, int64_t n_layers);
/// ln of U(low, high).
Initializer log_of_uniform(double low, double high);
/// ln(1), ln(2), ..., ln(period), and again: the rates of S4D-real's diagonal, A = -e^A_log.
Initializer log_of_count(int64_t period);
/// Biases of a softplus whose values are distributed log-uniformly between `low` and `high`, but not below `floor`.
Initializer inverse_softplus_of_log_uniform(double low, double high, double floor);

}  // namespace init
}  // namespace margay
