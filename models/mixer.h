#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor.h"
#include "models/config.h"
#include "models/parameter.h"

namespace margay {

/// What a layer remembers of the tokens it has seen, in step mode.
class MixerState {
 public:
  virtual ~MixerState() = default;
};

/// What the layers of one forward pass share.
struct ForwardContext {
  /// i64 [2] {seed, step} while dropout is on; undefined in evaluation.
  Tensor rng;
  /// i32 [R]: the rows of [B * T] that are read of what the last layer makes, -1 for a row that nobody reads.
  /// Undefined for all of them, in their order; so it is in all layers but the last.
  Tensor rows;
};

/// A sequence mixer: the part of a block that moves information between tokens.
class Mixer {
 public:
  virtual ~Mixer() = default;
  /// x [B, T, d] -> [B, T, d], causal. With a state, x continues the sequences that the state has seen, and the state
  /// is moved on; without one, x is the whole sequence. Both give the same results up to rounding.
  virtual Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const = 0;
  /// Rows context.rows of what forward() makes of whole sequences: x [B, T, d] -> [R, d]. A mixer may leave out what
  /// the others alone need; by default they are taken from forward().
  virtual Tensor forward_rows(const Tensor& x, const ForwardContext& context) const;
  /// The state before the first token of `batch` sequences.
  virtual std::unique_ptr<MixerState> start(int64_t batch) const = 0;
};

/// Makes the mixer that `config` names for layer `layer`. Throws ConfigError naming the nearest mixer if there is none.
std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, int64_t layer, const Scope& scope);
/// Names of all mixers, sorted.
std::vector<std::string> mixer_names();

}  // namespace margay
