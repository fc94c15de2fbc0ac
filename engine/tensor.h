#pragma once
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/storage.h"

namespace margay {

class Node;
class Tensor;
using Tensors = std::vector<Tensor>;

/// Typed pointer with shape and strides, for kernels that read views.
template <class T>
struct Strided {
  T* data;
  Shape shape, strides;
};

/// A cheap shared handle to a strided view of device memory, with its place in the autograd graph.
/// Copies share everything; views share the storage.
class Tensor {
 public:
  /// Called with the gradient of a tensor once it is complete; may return a replacement of the same shape, dtype and
  /// device, or an undefined tensor. Runs without recording.
  using Hook = std::function<Tensor(const Tensor& gradient)>;

  /// An undefined tensor: stands for "none".
  Tensor() = default;
  /// A view of existing storage. `offset` and strides count elements; strides may be negative. Throws
  /// std::out_of_range if it would reach beyond the storage.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, const Shape& strides, int64_t offset);

  bool defined() const { return impl_ != nullptr; }
  const Shape& shape() const;
  const Shape& strides() const;
  DType dtype() const;
  Device device() const;
  int ndim() const { return shape().ndim(); }
  /// Size of an axis; negative axes count from the end. Throws std::out_of_range.
  int64_t dim(int axis) const;
  int64_t numel() const;
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const;
  int64_t offset() const;

  /// Pointer to the first element. Throws std::logic_error on another dtype or a non-contiguous view.
  template <class T>
  T* data() const {
    return static_cast<T*>(checked_data(dtype_of<T>, true));
  }
  /// As data(), for kernels that take strides.
  template <class T>
  Strided<T> strided() const {
    return {static_cast<T*>(checked_data(dtype_of<T>, false)), shape(), strides()};
  }
  Region region() const;
  /// A view of the same storage, without autograd history; `offset` is relative to this tensor's first element.
  Tensor view(const Shape& shape, const Shape& strides, int64_t offset = 0) const;

  /// The value of a tensor with one element, converted to double.
  double item() const;
  /// All elements in row-major order, on the host.
  template <class T>
  std::vector<T> to_vector() const;
  /// This tensor, or an unrecorded row-major copy of it.
  Tensor contiguous() const;
  /// An unrecorded row-major copy.
  Tensor clone() const;
  /// This tensor, or an unrecorded copy converted to `dtype`.
  Tensor to(DType dtype) const;
  /// This tensor, or an unrecorded copy on `device`.
  Tensor to(Device device) const;
  void fill(double value) const;
  /// Overwrites the elements with those of `source` (same shape; dtype converted; any device).
  void copy_from(const Tensor& source) const;

  /// Whether operations on this tensor are recorded.
  bool requires_grad() const;
  /// Makes a leaf collect gradients. Throws OpError on integer tensors and on results of recorded ops.
  Tensor& set_requires_grad(bool value = true);
  bool is_leaf() const;
  /// The accumulated gradient; undefined if there is none.
  Tensor grad() const;
  void set_grad(const Tensor& gradient);
  void zero_grad() {
    if (defined()) set_grad({});
  }
  /// Lets a tensor that is not a leaf gather its gradient in grad() as well, after its hooks.
  void retain_grad();
  void register_hook(Hook hook);
  /// The same values without history.
  Tensor detach() const;
  /// Gradients of this tensor (one element, or with the cotangent `seed` of its shape) with respect to all leaves are
  /// added to their grad(). The graph is freed on the way unless `retain_graph`. If an op or a hook throws, no grad()
  /// has changed; the ops that were walked until then are freed all the same unless `retain_graph`.
  void backward(const Tensor& seed = {}, bool retain_graph = false) const;

  /// True if both are handles to the same tensor.
  bool same(const Tensor& other) const { return impl_ == other.impl_; }
  /// True if no other tensor shares this tensor's memory, and no other handle this tensor.
  bool exclusive() const;

 private:
  struct Impl;
  struct Autograd;
  friend class Node;
  friend class Graph;

  Impl& impl() const;
  Autograd& autograd() const;
  void* checked_data(DType dtype, bool contiguous) const;

  std::shared_ptr<Impl> impl_;
};

/// "f32[2,3,8]", with "@cuda:0" appended for tensors that are not on the CPU; "none" if undefined.
std::string describe(const Tensor& tensor);

/// Uninitialised. Throws OpError for a negative size or one beyond 64 bits, ResourceError where memory has run out.
Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = {});
Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = {});
Tensor ones(const Shape& shape, DType dtype = DType::f32, Device device = {});
Tensor full(const Shape& shape, double value, DType dtype = DType::f32, Device device = {});
/// Contiguous, uninitialised, with the shape, dtype and device of `like`.
Tensor empty_like(const Tensor& like);
Tensor zeros_like(const Tensor& like);
/// A copy of host values. Throws OpError if their number does not fit the shape.
template <class T>
Tensor from_values(std::span<const T> values, const Shape& shape, Device device = {});
template <class T>
Tensor from_values(const std::vector<T>& values, const Shape& shape, Device device = {}) {
  return from_values(std::span<const T>(values), shape, device);
}
template <class T>
Tensor from_values(std::initializer_list<T> values, const Shape& shape, Device device = {}) {
  return from_values(std::span<const T>(values.begin(), values.size()), shape, device);
}

}  // namespace margay
