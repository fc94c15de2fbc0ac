#include "engine/tensor.h"

#include <fmt/format.h>

#include <cstring>
#include <stdexcept>

#include "engine/error.h"
#include "engine/tensor_impl.h"

namespace margay {
namespace {

bool row_major(const Shape& shape, const Shape& strides) {
  if (shape.numel() == 0) return true;
  int64_t expected = 1;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Whether all elements of a view lie inside `bytes` bytes. Strides may be negative.
bool fits(const Shape& shape, const Shape& strides, int64_t offset, DType dtype, size_t bytes) {
  if (offset < 0 || shape.ndim() != strides.ndim()) return false;
  for (const int64_t size : shape)
    if (size < 0) return false;
  if (shape.numel() == 0) return true;
  int64_t first = offset, last = offset;
  for (int i = 0; i < shape.ndim(); ++i) {
    const int64_t reach = checked_multiply(shape[i] - 1, strides[i]);
    if (__builtin_add_overflow(reach < 0 ? first : last, reach, reach < 0 ? &first : &last)) return false;
  }
  return first >= 0 && last < static_cast<int64_t>(bytes / size_of(dtype));
}

int64_t bytes_of(const Shape& shape, DType dtype) {
  for (const int64_t size : shape)
    if (size < 0) throw OpError("empty", "shape", "without negative sizes", to_string(shape));
  try {
    return checked_multiply(shape.numel(), static_cast<int64_t>(size_of(dtype)));
  } catch (const std::overflow_error&) {
    throw OpError("empty", "shape", "of fewer than 2^63 bytes", to_string(shape));
  }
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, const Shape& strides, int64_t offset)
    : impl_(std::make_shared<Impl>()) {
  if (!fits(shape, strides, offset, dtype, storage->bytes()))
    throw std::out_of_range(fmt::format("view {} at {} reaches beyond its storage of {} bytes", to_string(shape),
                                        offset, storage->bytes()));
  impl_->storage = std::move(storage);
  impl_->dtype = dtype;
  impl_->shape = shape;
  impl_->strides = strides;
  impl_->offset = offset;
  impl_->contiguous = row_major(shape, strides);
}

Tensor::Impl& Tensor::impl() const {
  if (!impl_) throw std::logic_error("an undefined tensor was used");
  return *impl_;
}

Tensor::Autograd& Tensor::autograd() const {
  if (!impl().autograd) impl_->autograd = std::make_unique<Autograd>();
  return *impl_->autograd;
}

const Shape& Tensor::shape() const { return impl().shape; }
const Shape& Tensor::strides() const { return impl().strides; }
DType Tensor::dtype() const { return impl().dtype; }
Device Tensor::device() const { return impl().storage->device(); }
int64_t Tensor::numel() const { return impl().shape.numel(); }
bool Tensor::is_contiguous() const { return impl().contiguous; }
const std::shared_ptr<Storage>& Tensor::storage() const { return impl().storage; }
int64_t Tensor::offset() const { return impl().offset; }

int64_t Tensor::dim(int axis) const {
  const int index = axis < 0 ? axis + ndim() : axis;
  if (index < 0 || index >= ndim())
    throw std::out_of_range(fmt::format("axis {} of a tensor with shape {}", axis, to_string(shape())));
  return shape()[index];
}

void* Tensor::checked_data(DType dtype, bool contiguous) const {
  if (impl().dtype != dtype) throw std::logic_error(fmt::format("{} read as {}", describe(*this), name_of(dtype)));
  if (contiguous && !impl_->contiguous) throw std::logic_error(describe(*this) + " is not contiguous");
  if (Capture* const capture = Capture::current()) capture->use(impl_->storage);
  return static_cast<char*>(impl_->storage->data()) + impl_->offset * static_cast<int64_t>(size_of(dtype));
}

Region Tensor::region() const { return {checked_data(dtype(), false), dtype(), shape(), strides()}; }

Tensor Tensor::view(const Shape& shape, const Shape& strides, int64_t offset) const {
  return Tensor(storage(), dtype(), shape, strides, this->offset() + offset);
}

double Tensor::item() const {
  if (numel() != 1) throw OpError("item", "tensor", "of one element", describe(*this));
  return to(DType::f64).to_vector<double>()[0];
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const Tensor source = contiguous();
  std::vector<T> values(static_cast<size_t>(numel()));
  backend(device()).copy_to_host(values.data(), source.data<T>(), values.size() * sizeof(T));
  return values;
}
template <>
std::vector<bool> Tensor::to_vector<bool>() const {
  const std::vector<int32_t> values = to(DType::i32).to_vector<int32_t>();
  return {values.begin(), values.end()};
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<bf16> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor copy = empty_like(*this);
  backend(device()).copy(copy.region(), region());
  return copy;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == this->dtype()) return *this;
  Tensor converted = empty(shape(), dtype, device());
  backend(device()).copy(converted.region(), region());
  return converted;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  Tensor moved = empty(shape(), dtype(), device);
  moved.copy_from(*this);
  return moved;
}

void Tensor::fill(double value) const {
  storage()->bump_version();
  backend(device()).fill(region(), value);
}

void Tensor::copy_from(const Tensor& source) const {
  if (source.shape() != shape()) throw OpError("copy_from", "source", to_string(shape()), describe(source));
  storage()->bump_version();
  if (source.device() == device()) return backend(device()).copy(region(), source.region());
  // Across devices: as one contiguous block of this tensor's dtype, over the host.
  const Tensor packed = source.to(dtype()).contiguous();
  const auto bytes = static_cast<size_t>(bytes_of(shape(), dtype()));
  const Tensor staged = is_contiguous() ? *this : empty(shape(), dtype(), device());
  if (source.device().type == DeviceType::cpu) {
    backend(device()).copy_from_host(staged.region().data, packed.region().data, bytes);
  } else if (device().type == DeviceType::cpu) {
    backend(source.device()).copy_to_host(staged.region().data, packed.region().data, bytes);
  } else {
    staged.copy_from(packed.to(Device{}));
  }
  if (!staged.same(*this)) backend(device()).copy(region(), staged.region());
}

bool Tensor::is_leaf() const { return !impl().autograd || !impl_->autograd->node; }

bool Tensor::requires_grad() const {
  return impl().autograd && (impl_->autograd->requires_grad || impl_->autograd->node);
}

Tensor& Tensor::set_requires_grad(bool value) {
  if (!is_leaf()) throw OpError("set_requires_grad", "tensor", "a leaf", "the result of a recorded op");
  if (value && !is_float(dtype())) throw OpError("set_requires_grad", "tensor", "of a float dtype", describe(*this));
  autograd().requires_grad = value;
  return *this;
}

Tensor Tensor::grad() const { return impl().autograd ? impl_->autograd->grad : Tensor(); }

void Tensor::set_grad(const Tensor& gradient) {
  if (gradient.defined() &&
      (gradient.shape() != shape() || gradient.dtype() != dtype() || gradient.device() != device()))
    throw OpError("set_grad", "gradient", describe(*this), describe(gradient));
  if (gradient.defined() || impl().autograd) autograd().grad = gradient;
}

void Tensor::retain_grad() {
  if (!is_leaf()) impl_->autograd->node->outputs_[static_cast<size_t>(impl_->autograd->output)].retained = impl_;
}

void Tensor::register_hook(Hook hook) {
  if (!requires_grad()) throw OpError("register_hook", "tensor", "one that requires grad", describe(*this));
  if (is_leaf()) {
    autograd().hooks.push_back(std::move(hook));
  } else {
    impl_->autograd->node->outputs_[static_cast<size_t>(impl_->autograd->output)].hooks.push_back(std::move(hook));
  }
}

Tensor Tensor::detach() const { return defined() ? view(shape(), strides()) : Tensor(); }

void Tensor::backward(const Tensor& seed, bool retain_graph) const { Graph::backward(*this, seed, retain_graph); }

bool Tensor::exclusive() const { return impl_.use_count() == 1 && impl_->storage.use_count() == 1; }

std::string describe(const Tensor& tensor) {
  if (!tensor.defined()) return "none";
  const std::string text = fmt::format("{}{}", name_of(tensor.dtype()), to_string(tensor.shape()));
  return tensor.device() == Device{} ? text : fmt::format("{}@{}", text, to_string(tensor.device()));
}

Tensor empty(const Shape& shape, DType dtype, Device device) {
  const auto bytes = static_cast<size_t>(bytes_of(shape, dtype));
  return Tensor(std::make_shared<Storage>(bytes, device), dtype, shape, contiguous_strides(shape), 0);
}

Tensor full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor tensor = empty(shape, dtype, device);
  backend(device).fill(tensor.region(), value);
  return tensor;
}

Tensor zeros(const Shape& shape, DType dtype, Device device) { return full(shape, 0, dtype, device); }
Tensor ones(const Shape& shape, DType dtype, Device device) { return full(shape, 1, dtype, device); }
Tensor empty_like(const Tensor& like) { return empty(like.shape(), like.dtype(), like.device()); }
Tensor zeros_like(const Tensor& like) { return zeros(like.shape(), like.dtype(), like.device()); }

template <class T>
Tensor from_values(std::span<const T> values, const Shape& shape, Device device) {
  if (static_cast<int64_t>(values.size()) != shape.numel())
    throw OpError("from_values", "values", fmt::format("as many as {} holds", to_string(shape)),
                  std::to_string(values.size()));
  Tensor tensor = empty(shape, dtype_of<T>, device);
  backend(device).copy_from_host(tensor.data<T>(), values.data(), values.size_bytes());
  return tensor;
}
template Tensor from_values(std::span<const float>, const Shape&, Device);
template Tensor from_values(std::span<const double>, const Shape&, Device);
template Tensor from_values(std::span<const bf16>, const Shape&, Device);
template Tensor from_values(std::span<const int32_t>, const Shape&, Device);
template Tensor from_values(std::span<const int64_t>, const Shape&, Device);
template Tensor from_values(std::span<const bool>, const Shape&, Device);

}  // namespace margay
