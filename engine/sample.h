#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.h"

namespace margay {

/// One input of a sample: how to make it. Float inputs exist in every float dtype; the rest in their own.
struct SampleInput {
  enum class Kind { real, distinct, ids, mask };
  Shape shape;
  Kind kind = Kind::real;
  double low = -1, high = 1;  // range of the values (ids: low <= id < high)
  bool differentiable = true;
  /// Whether it may be given as a non-contiguous view.
  bool strided = true;
};

/// Uniform values in [low, high).
inline SampleInput real(const Shape& shape, double low = -1, double high = 1) {
  return {shape, SampleInput::Kind::real, low, high, true, true};
}
/// Values at least (high - low) / numel apart, for ops with kinks at ties.
inline SampleInput distinct(const Shape& shape, double low = -1, double high = 1) {
  return {shape, SampleInput::Kind::distinct, low, high, true, true};
}
/// Float values without a gradient.
inline SampleInput constant(const Shape& shape, double low = -1, double high = 1) {
  return {shape, SampleInput::Kind::real, low, high, false, true};
}
/// i32 values, low <= id < high.
inline SampleInput ids(const Shape& shape, int64_t low, int64_t high) {
  return {shape, SampleInput::Kind::ids, static_cast<double>(low), static_cast<double>(high), false, true};
}
/// Random booleans.
inline SampleInput mask(const Shape& shape) { return {shape, SampleInput::Kind::mask, 0, 1, false, true}; }

/// One call of an op on inputs that can be made for every dtype and device: what the tests check and the tools list.
struct Sample {
  std::vector<SampleInput> inputs;
  /// Returns the op's outputs. Must be a pure function of its inputs.
  std::function<Tensors(const Tensors&)> call;
  /// Absolute and relative tolerance of f32 against f64.
  double tolerance = 1e-5;
  /// Told apart in messages.
  std::string name = {};
};

using Samples = std::vector<Sample>;

/// Marks an op that has no gradient.
struct NoGradient {
  std::string_view reason;
};
inline NoGradient no_grad(std::string_view reason) { return {reason}; }

}  // namespace margay
