#pragma once
#include "models/config.h"
#include "models/parameter.h"
#include "ops/vandermonde.h"

namespace margay {

/// What step mode remembers of diagonal state-space models.
struct DiagonalSsmState {
  Tensor modes;   // the sampled systems
  Tensor states;  // [B, N, 2, C]
};

/// A bank of diagonal state-space models with a skip D, one for each group of neighbouring channels (S4D).
class DiagonalSsmBank {
 public:
  /// `models` systems of d_state states (even) that start as `init` says: "lin", "inv" or "real".
  DiagonalSsmBank(const Scope& scope, int64_t models, int64_t d_state, const std::string& init,
                  Discretization discretization);
  /// u [B, T, C], where C / models neighbouring channels go through one model, each by itself.
  Tensor operator()(const Tensor& u, DiagonalSsmState* state) const;

 private:
  DiagonalSsm ssm_;
  Tensor skip_;
};

/// Throws ConfigError unless the number of states is even; `key` names it.
int64_t checked_states(const char* key, int64_t d_state);

}  // namespace margay
