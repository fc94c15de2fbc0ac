#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace margay {

/// The most axes a tensor can have.
inline constexpr int kMaxDims = 8;

/// a * b; throws std::overflow_error instead of wrapping. Every size in bytes or elements goes through it.
int64_t checked_multiply(int64_t a, int64_t b);

/// Up to kMaxDims integers without a heap allocation: the sizes or strides of a tensor, outermost axis first.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes);

  int ndim() const { return ndim_; }
  int64_t operator[](int axis) const { return sizes_[static_cast<size_t>(axis)]; }
  int64_t& operator[](int axis) { return sizes_[static_cast<size_t>(axis)]; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + ndim_; }
  bool operator==(const Shape& other) const;

  /// Product of the sizes (1 for no axes). Throws std::overflow_error if the product of those that are not 0 does not
  /// fit: strides would wrap even where there are no elements.
  int64_t numel() const;
  /// Appends an axis at the end. Throws std::length_error beyond kMaxDims.
  void push_back(int64_t size);
  Shape with(int axis, int64_t size) const;
  Shape without(int axis) const;

 private:
  std::array<int64_t, kMaxDims> sizes_{};
  int ndim_ = 0;
};

/// "[2,3,8]".
std::string to_string(const Shape& shape);
/// Row-major strides, in elements. Throws std::overflow_error as Shape::numel() does.
Shape contiguous_strides(const Shape& shape);
/// The NumPy broadcast of two shapes; false where they do not fit together.
bool broadcast(const Shape& a, const Shape& b, Shape& out);
/// Strides that read a tensor of `shape` and `strides` as if it had the shape `target`: 0 along broadcast axes.
/// Requires that `shape` broadcasts to `target`.
Shape broadcast_strides(const Shape& shape, const Shape& strides, const Shape& target);

}  // namespace margay
