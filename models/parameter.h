#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.h"
#include "models/init.h"

namespace margay {

/// A trainable tensor of a model: a leaf that requires grad.
struct Parameter {
  std::string name;  ///< dotted path, as in checkpoints
  Tensor value;
  /// Whether weight decay applies in the standard grouping: matrices decay; norms, biases, and the time constants of
  /// state-space models do not.
  bool decay = true;
  double max_lr = std::numeric_limits<double>::infinity();  ///< its learning rate is never above this
};
using Parameters = std::vector<Parameter>;

/// Where a layer declares its parameters: a place in the tree of names, and how to make initial values. A parameter is
/// declared once, by name; its initial value depends on the seed and its full name only, so adding one changes no
/// other.
class Scope {
 public:
  Scope(Parameters& parameters, uint64_t seed, DType dtype, Device device)
      : parameters_(&parameters), seed_(seed), dtype_(dtype), device_(device) {}
  /// Without values: what is declared has its name and shape, and all its elements are one zero in memory.
  static Scope of_shapes(Parameters& parameters);

  /// The scope of a child: names below it start with this scope's name and `name`.
  Scope operator/(std::string_view name) const;
  Scope operator/(int64_t index) const { return *this / std::string_view(std::to_string(index)); }

  /// Declares a parameter and returns its tensor.
  Tensor parameter(std::string_view name, const Shape& shape, const Initializer& initializer, bool decay = true,
                   double max_lr = std::numeric_limits<double>::infinity()) const;
  /// The dotted name of this place.
  const std::string& name() const { return name_; }
  /// The random stream of a dropout site in this place.
  uint64_t stream(std::string_view site) const;
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

 private:
  std::string full_name(std::string_view name) const;
  Tensor initial_value(const std::string& name, const Shape& shape, const Initializer& initializer) const;

  Parameters* parameters_;
  uint64_t seed_;
  DType dtype_;
  Device device_;
  bool shapes_only_ = false;
  std::string name_;
};

}  // namespace margay
