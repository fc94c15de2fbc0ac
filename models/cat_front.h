#pragma once
#include <array>
#include <optional>

#include "models/attention_core.h"
#include "models/short_conv.h"

namespace margay {

/// What step mode remembers of the filters' inputs: of all three together, or of each.
struct CatFrontState {
  ConvState packed;
  std::array<ConvState, 3> single;
};

/// The front end shared by cat, lincat and lcat: projections, short filters and norms, up to the heads.
class CatFront {
 public:
  CatFront(const ModelConfig& config, const Scope& scope);
  /// x [B, T, d] -> q, k, v [B, H, T, dh].
  Qkv operator()(const Tensor& x, CatFrontState* state) const;
  /// The learned score scale [H], undefined unless qk_norm is "l2_head".
  const Tensor& beta() const { return beta_; }

 private:
  Qkv project_then_filter(const Tensor& x, CatFrontState* state) const;
  Qkv filter_then_project(const Tensor& x, CatFrontState* state) const;
  Tensor filter_then_project(const Tensor& x, size_t letter, CatFrontState* state) const;

  CatConfig options_;
  int64_t heads_;
  QkvProjection projection_;
  std::array<std::optional<ShortConv>, 3> conv_;  // of q, k, v
  Tensor beta_;
};

}  // namespace margay
