#pragma once
#include <vector>

#include "engine/tensor.h"

namespace margay::test {

/// The place of an element, one number an axis.
using Index = std::vector<int64_t>;

/// Calls body(index) for every element of a shape in row-major order.
template <class Body>
void for_each_index(const Shape& shape, const Body& body) {
  Index index(static_cast<size_t>(shape.ndim()), 0);
  for (int64_t i = 0; i < shape.numel(); ++i) {
    body(static_cast<const Index&>(index));
    for (size_t axis = index.size(); axis-- > 0;) {
      if (++index[axis] < shape[static_cast<int>(axis)]) break;
      index[axis] = 0;
    }
  }
}

/// A tensor's elements, read or added to by index: for references in plain loops.
class Elements {
 public:
  explicit Elements(const Tensor& tensor)
      : shape_(tensor.shape()), values_(tensor.detach().to(DType::f64).to_vector<double>()) {}
  explicit Elements(const Shape& shape) : shape_(shape), values_(static_cast<size_t>(shape.numel())) {}

  double operator()(const Index& index) const { return values_.at(position(index)); }
  double& operator()(const Index& index) { return values_.at(position(index)); }
  Tensor to_tensor(DType dtype) const { return from_values(values_, shape_).to(dtype); }

 private:
  size_t position(const Index& index) const {
    int64_t place = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) place = place * shape_[static_cast<int>(axis)] + index[axis];
    return static_cast<size_t>(place);
  }

  Shape shape_;
  std::vector<double> values_;
};

/// The tensor whose element at every index is function(index).
template <class Function>
Tensor from_function(const Shape& shape, DType dtype, const Function& function) {
  Elements elements(shape);
  for_each_index(shape, [&](const Index& index) { elements(index) = function(index); });
  return elements.to_tensor(dtype);
}

}  // namespace margay::test
