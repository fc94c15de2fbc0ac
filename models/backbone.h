#pragma once
#include <memory>
#include <vector>

#include "models/mixer.h"

namespace margay {

/// Step-mode state of a whole model.
struct ModelState {
  std::vector<std::unique_ptr<MixerState>> layers;
  /// Tokens seen so far.
  int64_t position = 0;
};

/// A stack of blocks between the token embedding and the head.
class Backbone {
 public:
  virtual ~Backbone() = default;
  /// ids i32 [B, T] -> the residual stream after the last block, before the final norm: [B, T, d], or if context.rows
  /// is given those rows [R, d], without a state.
  virtual Tensor trunk(const Tensor& ids, const ForwardContext& context, ModelState* state) const = 0;
  /// The final norm, row by row.
  virtual Tensor final_norm(const Tensor& h) const = 0;
  /// The head's weight [V, d]: logits = final_norm(h) weight^T.
  virtual const Tensor& head() const = 0;
  virtual ModelState start(int64_t batch) const = 0;
};

std::unique_ptr<Backbone> make_backbone(const ModelConfig& config, const Scope& scope);

}  // namespace margay
