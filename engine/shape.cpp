#include "engine/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <stdexcept>

namespace margay {

int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw std::overflow_error("size does not fit in 64 bits");
  return product;
}

Shape::Shape(std::span<const int64_t> sizes) {
  for (const int64_t size : sizes) push_back(size);
}

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

int64_t Shape::numel() const {
  int64_t count = 1;
  bool empty = false;
  for (const int64_t size : *this) {
    empty |= size == 0;
    if (size != 0) count = checked_multiply(count, size);
  }
  return empty ? 0 : count;
}

void Shape::push_back(int64_t size) {
  if (ndim_ == kMaxDims) throw std::length_error(fmt::format("a tensor has at most {} axes", kMaxDims));
  sizes_[static_cast<size_t>(ndim_++)] = size;
}

Shape Shape::with(int axis, int64_t size) const {
  Shape changed = *this;
  changed[axis] = size;
  return changed;
}

Shape Shape::without(int axis) const {
  Shape changed;
  for (int i = 0; i < ndim_; ++i)
    if (i != axis) changed.push_back((*this)[i]);
  return changed;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ",")); }

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t stride = 1;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride = checked_multiply(stride, std::max<int64_t>(shape[i], 1));
  }
  return strides;
}

bool broadcast(const Shape& a, const Shape& b, Shape& out) {
  const int ndim = std::max(a.ndim(), b.ndim());
  Shape result;
  for (int i = 0; i < ndim; ++i) {
    const int ia = i - (ndim - a.ndim()), ib = i - (ndim - b.ndim());
    const int64_t sa = ia < 0 ? 1 : a[ia], sb = ib < 0 ? 1 : b[ib];
    if (sa != sb && sa != 1 && sb != 1) return false;
    result.push_back(sa == 1 ? sb : sa);
  }
  out = result;
  return true;
}

Shape broadcast_strides(const Shape& shape, const Shape& strides, const Shape& target) {
  Shape result = target;
  const int lead = target.ndim() - shape.ndim();
  for (int i = 0; i < target.ndim(); ++i) {
    const bool repeated = i < lead || (shape[i - lead] == 1 && target[i] != 1);
    result[i] = repeated ? 0 : strides[i - lead];
  }
  return result;
}

}  // namespace margay
