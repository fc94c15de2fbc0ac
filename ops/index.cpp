#include "ops/index.h"

#include <limits>

#include "engine/launch.h"
#include "ops/trusted_indices.h"

namespace margay {
namespace {

// "9000 at [1,5]": an element of a tensor and where it stands.
std::string element_text(const Tensor& index, int64_t position) {
  const int32_t value = index.to_vector<int32_t>()[static_cast<size_t>(position)];
  Shape place = index.shape();
  for (int axis = place.ndim() - 1; axis >= 0; --axis) {
    place[axis] = position % index.dim(axis);
    position /= index.dim(axis);
  }
  return fmt::format("{} at {}", value, to_string(place));
}

}  // namespace

AxisSplit::AxisSplit(const Shape& shape, int axis) : size(shape[axis]) {
  for (int i = 0; i < axis; ++i) outer *= shape[i];
  for (int i = axis + 1; i < shape.ndim(); ++i) inner *= shape[i];
}

Tensor checked_index(const Op& op, const char* arg, const Tensor& index, const Tensor& like, int64_t size,
                     bool or_missing) {
  op.require(index.defined() && index.dtype() == DType::i32 && index.device() == like.device(), arg, index,
             "of dtype i32 on {}", to_string(like.device()));
  op.require(index.numel() <= std::numeric_limits<int32_t>::max(), arg, index, "of less than 2^31 elements");
  Tensor indices = index.contiguous();
  if (TrustedIndices::enabled()) return indices;
  const Tensor first_bad = empty({1}, DType::i64, index.device());
  const int64_t low = or_missing ? -1 : 0;
  op.launch<kernels::CheckIndex>(indices, [&]<class T>(kernels::CheckIndex<T>& a) {
    a = {indices.data<int32_t>(), first_bad.data<int64_t>(), indices.numel(), low, size};
  });
  const int64_t position = first_bad.to_vector<int64_t>()[0];
  if (position >= 0) op.require(false, arg, element_text(indices, position), "at least {} and less than {}", low, size);
  return indices;
}

Tensor take_index(const Op& op, const Tensor& x, int axis, const Tensor& index, const Shape& y_shape) {
  const AxisSplit split(x.shape(), axis);
  const Tensor source = x.contiguous();
  Tensor y = empty(y_shape, x.dtype(), x.device());
  op.launch<kernels::TakeIndex>(x, [&]<class T>(kernels::TakeIndex<T>& a) {
    a = {source.data<T>(), index.data<int32_t>(), y.data<T>(), split.outer, split.size, index.numel(), split.inner};
  });
  return y;
}

Tensor add_index(const Op& op, const Tensor& dy, int axis, const Tensor& index, const Shape& x_shape,
                 const Tensor& destination) {
  using Sizes = kernels::AddIndex<float>;
  const AxisSplit split(x_shape, axis);
  const int64_t count = index.numel();
  Tensor dx = destination.defined() ? destination : zeros(x_shape, dy.dtype(), dy.device());
  const Tensor order = empty({Sizes::order_size(split.size, count)}, DType::i32, dy.device());
  const Tensor edges =
      empty({split.outer, Sizes::pieces(count, split.inner), split.inner}, acc_dtype(dy.dtype()), dy.device());
  op.launch<kernels::AddIndex>(dy, [&]<class T>(kernels::AddIndex<T>& a) {
    a = {dy.data<T>(),
         index.data<int32_t>(),
         dx.data<T>(),
         order.data<int32_t>(),
         edges.data<acc_t<T>>(),
         split.outer,
         split.size,
         count,
         split.inner};
  });
  return dx;
}

Tensor take_along(const Op& op, const Tensor& x, int axis, const Tensor& index) {
  const AxisSplit split(x.shape(), axis);
  const Tensor source = x.contiguous();
  Tensor y = empty(index.shape(), x.dtype(), x.device());
  op.launch<kernels::TakeAlong>(x, [&]<class T>(kernels::TakeAlong<T>& a) {
    a = {source.data<T>(), index.data<int32_t>(), y.data<T>(), split.outer, split.size, index.dim(axis), split.inner};
  });
  return y;
}

void add_along(const Op& op, const Tensor& to, int axis, const Tensor& index, const Tensor& from) {
  const AxisSplit split(to.shape(), axis);
  const Tensor source = from.contiguous();
  op.launch<kernels::AddAlong>(to, [&]<class T>(kernels::AddAlong<T>& a) {
    a = {source.data<T>(), index.data<int32_t>(), to.data<T>(), split.outer, split.size, index.dim(axis), split.inner};
  });
}

}  // namespace margay
