#include "models/parameter.h"

#include <vector>

namespace margay {

Scope Scope::operator/(std::string_view name) const {
  Scope child = *this;
  child.name_ = full_name(name);
  return child;
}

std::string Scope::full_name(std::string_view name) const {
  return name_.empty() ? std::string(name) : name_ + "." + std::string(name);
}

uint64_t Scope::stream(std::string_view site) const { return hash_name(full_name(site)); }

Scope Scope::of_shapes(Parameters& parameters) {
  Scope scope(parameters, 0, DType::f32, {});
  scope.shapes_only_ = true;
  return scope;
}

Tensor Scope::initial_value(const std::string& name, const Shape& shape, const Initializer& initializer) const {
  if (shapes_only_) {
    Shape strides = shape;
    for (int axis = 0; axis < shape.ndim(); ++axis) strides[axis] = 0;
    return zeros({}).view(shape, strides);
  }
  RandomStream random(seed_, hash_name(name));
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(initializer(random, static_cast<int64_t>(i)));
  return from_values(values, shape).to(dtype_).to(device_);
}

Tensor Scope::parameter(std::string_view name, const Shape& shape, const Initializer& initializer, bool decay,
                        double max_lr) const {
  const std::string full = full_name(name);
  Tensor value = initial_value(full, shape, initializer);
  value.set_requires_grad();
  parameters_->push_back({full, value, decay, max_lr});
  return value;
}

}  // namespace margay
