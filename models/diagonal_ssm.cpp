#include "models/diagonal_ssm.h"

#include <fmt/format.h>

#include <cmath>

#include "engine/error.h"
#include "ops/fft_conv.h"
#include "ops/view.h"

namespace margay {
namespace {

// Time constants do not decay in the standard grouping, and learn slowly: Gu et al. 2022, arXiv:2206.11893.
constexpr bool kNoDecay = false;
constexpr double kSlow = 1e-3;

/// log dt is uniform between these.
Initializer log_dt_init() {
  return [](RandomStream& random, int64_t) {
    const double low = std::log(0.001), high = std::log(0.1);
    return low + (high - low) * random.uniform64();
  };
}

Initializer log_A_real_init(const std::string& init, int64_t pairs) {
  return [real = init == "real", pairs](RandomStream&, int64_t index) {
    return real ? std::log(static_cast<double>(index % pairs + 1)) : std::log(0.5);
  };
}

Initializer A_imag_init(const std::string& init, int64_t pairs) {
  constexpr double pi = 3.14159265358979323846;
  return [init, pairs](RandomStream&, int64_t index) {
    const auto n = static_cast<double>(index % pairs), N = 2 * static_cast<double>(pairs);
    if (init == "lin") return pi * n;
    if (init == "inv") return N / pi * (N / (2 * n + 1) - 1);
    return 0.0;
  };
}

/// Every element of an axis `times` times in a row.
Tensor repeat(const Tensor& x, int64_t times, int axis) {
  if (times == 1) return x;
  const Tensor wide = unsqueeze(x, axis + 1);
  Shape repeated = wide.shape(), joined = x.shape();
  repeated[axis + 1] = times;
  joined[axis] *= times;
  return reshape(expand(wide, repeated), joined);
}

}  // namespace

int64_t checked_states(const char* key, int64_t d_state) {
  if (d_state % 2 != 0)
    throw ConfigError(fmt::format("{} must be even (states come in conjugate pairs), got {}", key, d_state));
  return d_state;
}

DiagonalSsmBank::DiagonalSsmBank(const Scope& scope, int64_t models, int64_t d_state, const std::string& init,
                                 Discretization discretization) {
  const int64_t pairs = d_state / 2;
  ssm_.log_dt = scope.parameter("log_dt", {models}, log_dt_init(), kNoDecay, kSlow);
  ssm_.C = scope.parameter("C", {models, pairs, 2}, init::normal(std::sqrt(0.5)));
  ssm_.log_A_real = scope.parameter("log_A_real", {models, pairs}, log_A_real_init(init, pairs), kNoDecay, kSlow);
  ssm_.A_imag = scope.parameter("A_imag", {models, pairs}, A_imag_init(init, pairs), kNoDecay, kSlow);
  ssm_.discretization = discretization;
  skip_ = scope.parameter("D", {models}, init::normal(1), kNoDecay);
}

Tensor DiagonalSsmBank::operator()(const Tensor& u, DiagonalSsmState* state) const {
  const int64_t group = u.dim(2) / skip_.dim(0);
  const Tensor skip = repeat(skip_, group, 0);
  if (!state) return fft_conv(u, repeat(vandermonde(ssm_, u.dim(1)), group, 0), skip);
  if (!state->modes.defined()) {
    state->modes = repeat(discretize(ssm_), group, 2);
    state->states = zeros({u.dim(0), ssm_.C.dim(1), 2, u.dim(2)}, u.dtype(), u.device());
  }
  const Tensors results = ssm_steps(u, state->modes, skip, state->states);
  state->states = results[1];
  return results[0];
}

}  // namespace margay
