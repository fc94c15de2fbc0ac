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
  /// i32 [R]: the rows of [B * T] that are read of what the last layer makes, -1 for a row that nobody reads. Undefined
  /// for all of them, in their order, as in all layers but the last.
  Tensor rows;

  /// Those rows [R, w] of y [B, T, w]; y itself if all are read.
  Tensor read(const Tensor& y) const;
};

/// A sequence mixer: the part of a block that moves information between tokens.
class Mixer {
 public:
  virtual ~Mixer() = default;
  /// x [B, T, d] -> [B, T, d], causal. With a state, x continues the sequences that the state has seen, and the state
  /// is moved on; without one, x is the whole sequence. Both give the same results up to rounding. Where context.rows
  /// is given, which it is without a state only, the result is context.read() of that: what treats each token by itself
  /// can then be left to the rows that are read.
  virtual Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const = 0;
  /// The state before the first token of `batch` sequences.
  virtual std::unique_ptr<MixerState> start(int64_t batch) const = 0;
};

/// Makes the mixer that `config` names for layer `layer`. Throws ConfigError naming the nearest mixer if there is none.
std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, int64_t layer, const Scope& scope);
/// Names of all mixers, sorted.
std::vector<std::string> mixer_names();

}  // namespace margay
