#include "ops/concat.h"

#include <fmt/ranges.h>

#include <utility>
#include <vector>

#include "engine/launch.h"
#include "ops/view.h"

namespace margay {
namespace {

const Op concat_op{"concat", [] {
                     const auto middle = [](const Tensors& in) { return Tensors{concat(in, 1)}; };
                     const auto last = [](const Tensors& in) { return Tensors{concat(in, -1)}; };
                     return Samples{
                         {.inputs = {real({2, 3, 4}), real({2, 1, 4}), real({2, 5, 4})}, .call = middle},
                         {.inputs = {real({3, 2}), real({3, 2})}, .call = last, .name = "last axis"},
                         {.inputs = {real({4})}, .call = last, .name = "one tensor"},
                         {.inputs = {real({2, 0}), real({2, 3}), real({2, 0})}, .call = middle, .name = "empty parts"},
                         {.inputs = {real({0, 2}), real({0, 3})}, .call = middle, .name = "empty"},
                         {.inputs = {ids({2, 3}, 0, 9), ids({2, 1}, 0, 9)}, .call = middle, .name = "integers"},
                         {.inputs = {mask({2, 3}), mask({2, 2})}, .call = middle, .name = "booleans"}};
                   }};

const Op stack_op{"stack", [] {
                    const auto first = [](const Tensors& in) { return Tensors{stack(in, 0)}; };
                    const auto last = [](const Tensors& in) { return Tensors{stack(in, -1)}; };
                    return Samples{{.inputs = {real({2, 3}), real({2, 3}), real({2, 3})}, .call = first},
                                   {.inputs = {real({2, 3}), real({2, 3})}, .call = last, .name = "last axis"},
                                   {.inputs = {real({}), real({})}, .call = last, .name = "0-d"},
                                   {.inputs = {real({0, 3}), real({0, 3})}, .call = last, .name = "empty"},
                                   {.inputs = {ids({3}, 0, 9), ids({3}, 0, 9)}, .call = last, .name = "integers"}};
                  }};

const Op split_op{"split", [] {
                    const auto call = [](const Tensors& in) { return split(in[0], 1, {2, 0, 3, 1}); };
                    return Samples{{.inputs = {real({3, 6, 2})}, .call = call},
                                   {.inputs = {real({0, 6})}, .call = call, .name = "empty"},
                                   {.inputs = {ids({2, 6}, 0, 9)}, .call = call, .name = "integers"}};
                  }};

const Op chunk_op{
    "chunk", [] {
      const auto halves = [](const Tensors& in) { return chunk(in[0], -1, 2); };
      return Samples{
          {.inputs = {real({5, 4})}, .call = halves},
          {.inputs = {real({2, 0})}, .call = halves, .name = "empty axis"},
          {.inputs = {real({3, 2})}, .call = [](const Tensors& in) { return chunk(in[0], 0, 1); }, .name = "one part"},
          {.inputs = {mask({2, 4})}, .call = halves, .name = "booleans"}};
    }};

// The stride between rows where x can be seen as rows of contiguous elements, the axes from `axis` on; else -1.
int64_t row_stride(const Tensor& x, int axis) {
  int64_t length = 1, stride = -1, next = 0;
  for (int i = x.ndim() - 1; i >= 0; --i) {
    const int64_t size = x.dim(i), own = x.strides()[i];
    if (size == 1) continue;
    if (i >= axis) {
      if (own != length) return -1;
      length *= size;
    } else {
      if (stride >= 0 && own != next) return -1;
      if (stride < 0) stride = own;
      next = own * size;
    }
  }
  return stride >= 0 ? stride : length;
}

// Copies the parts side by side into y, which is contiguous. Short rows are written row by row: part by part, every
// page and often every cache line of y would be visited several times.
void join(const Op& op, std::span<const Tensor> parts, int axis, const Tensor& y) {
  constexpr int64_t longest_row = 8192;
  int64_t rows = 1;
  for (int i = 0; i < axis; ++i) rows *= y.dim(i);
  const int64_t row_length = rows > 0 ? y.numel() / rows : 0;
  bool by_rows = rows > 1 && row_length <= longest_row && parts.size() <= kernels::JoinRows<float>::kMaxParts;
  for (const Tensor& part : parts) by_rows = by_rows && row_stride(part, axis) >= 0;
  if (by_rows) {
    op.launch<kernels::JoinRows>(y, [&]<class T>(kernels::JoinRows<T>& a) {
      for (const Tensor& part : parts)
        a.parts[a.count++] = {part.strided<T>().data, part.numel() / rows, row_stride(part, axis)};
      a.y = y.data<T>();
      a.rows = rows;
      a.row_length = row_length;
    });
    return;
  }
  int64_t start = 0;
  for (const Tensor& part : parts) {
    slice(y, axis, start, start + part.dim(axis)).copy_from(part);
    start += part.dim(axis);
  }
}

// The parts as one contiguous tensor, where they lie side by side in memory already, as the gradients of queries, keys
// and values do; else undefined.
Tensor side_by_side(std::span<const Tensor> parts, int axis, const Shape& shape) {
  const Tensor& first = parts[0];
  const Shape strides = contiguous_strides(shape);
  int64_t next = first.offset();
  for (const Tensor& part : parts) {
    if (part.storage() != first.storage() || part.offset() != next) return {};
    for (int i = 0; i < shape.ndim(); ++i)
      if (part.dim(i) != 1 && part.strides()[i] != strides[i]) return {};
    next += part.dim(axis) * strides[axis];
  }
  return first.view(shape, strides);
}

// Adds the cotangents of the parts, side by side, to dx.
void add_cotangents(const VjpContext& context, int axis, std::span<const int64_t> sizes, const Tensor& dx) {
  int64_t start = 0;
  for (size_t i = 0; i < sizes.size(); start += sizes[i++]) {
    const Tensor& dy = context.cotangent(i);
    if (dy.defined()) backend(dx.device()).accumulate(slice(dx, axis, start, start + sizes[i]).region(), dy.region());
  }
}

// The views of an axis cut into `sizes`, as one recorded op.
Tensors parts_of(const Op& op, const Tensor& x, int axis, std::vector<int64_t> sizes) {
  Tensors parts;
  {
    const NoGrad no_grad;
    int64_t start = 0;
    for (const int64_t size : sizes) {
      parts.push_back(slice(x, axis, start, start + size));
      start += size;
    }
  }
  const auto vjp = [&op, axis, sizes = std::move(sizes), shape = x.shape(), dtype = x.dtype(),
                    device = x.device()](const VjpContext& context) {
    if (context.destination(0).defined()) {
      add_cotangents(context, axis, sizes, context.destination(0));
      return Tensors{context.destination(0)};
    }
    Tensors cotangents;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const Tensor& dy = context.cotangent(i);
      cotangents.push_back(dy.defined() ? dy : expand(zeros({}, dtype, device), shape.with(axis, sizes[i])));
    }
    if (const Tensor whole = side_by_side(cotangents, axis, shape); whole.defined()) return Tensors{whole};
    const Tensor dx = empty(shape, dtype, device);
    join(op, cotangents, axis, dx);
    return Tensors{dx};
  };
  return op.record(std::move(parts), {x}, vjp, CotangentLayout::strided);
}

}  // namespace

Tensor concat(std::span<const Tensor> tensors, int axis) {
  concat_op.require(!tensors.empty(), "tensors", tensors.size(), "at least 1");
  const Tensor& first = tensors[0];
  concat_op.require(first.defined(), "tensors", first, "tensors");
  const int a = concat_op.axis(axis, first);
  std::vector<int64_t> sizes;
  Shape shape = first.shape().with(a, 0);
  for (const Tensor& tensor : tensors) {
    concat_op.require_like("tensors", tensor, "tensors[0]", first);
    concat_op.require(tensor.ndim() == first.ndim() && tensor.shape().with(a, shape[a]) == shape, "tensors", tensor,
                      "of the sizes of tensors[0] {} but for axis {}", first, axis);
    sizes.push_back(tensor.dim(a));
    shape[a] += tensor.dim(a);
  }
  const OpScope scope(concat_op.name());
  const Tensor y = empty(shape, first.dtype(), first.device());
  join(concat_op, tensors, a, y);
  const auto vjp = [a, sizes = std::move(sizes)](const VjpContext& context) {
    Tensors gradients(sizes.size());
    int64_t start = 0;
    for (size_t i = 0; i < sizes.size(); start += sizes[i++])
      if (context.wanted(i)) gradients[i] = slice(context.cotangent(), a, start, start + sizes[i]);
    return gradients;
  };
  return concat_op.record(y, tensors, vjp, CotangentLayout::strided);
}

Tensor stack(std::span<const Tensor> tensors, int axis) {
  stack_op.require(!tensors.empty(), "tensors", tensors.size(), "at least 1");
  const Tensor& first = tensors[0];
  stack_op.require(first.defined(), "tensors", first, "tensors");
  for (const Tensor& tensor : tensors) {
    stack_op.require_like("tensors", tensor, "tensors[0]", first);
    stack_op.require(tensor.shape() == first.shape(), "tensors", tensor, "of the shape of tensors[0] {}", first);
  }
  const int ndim = first.ndim() + 1, a = axis < 0 ? axis + ndim : axis;
  stack_op.require(ndim <= kMaxDims, "tensors", first, "of less than {} axes", kMaxDims);
  stack_op.require(a >= 0 && a < ndim, "axis", axis, "from {} to {} for tensors {}", -ndim, ndim - 1, first);
  Shape shape;
  for (int i = 0; i < ndim; ++i)
    shape.push_back(i == a ? static_cast<int64_t>(tensors.size()) : first.dim(i < a ? i : i - 1));
  const OpScope scope(stack_op.name());
  const Tensor y = empty(shape, first.dtype(), first.device());
  for (size_t i = 0; i < tensors.size(); ++i) select(y, a, static_cast<int64_t>(i)).copy_from(tensors[i]);
  const auto vjp = [a, n = tensors.size()](const VjpContext& context) {
    Tensors gradients(n);
    for (size_t i = 0; i < n; ++i)
      if (context.wanted(i)) gradients[i] = select(context.cotangent(), a, static_cast<int64_t>(i));
    return gradients;
  };
  return stack_op.record(y, tensors, vjp, CotangentLayout::strided);
}

Tensors split(const Tensor& x, int axis, std::span<const int64_t> sizes) {
  split_op.require(x.defined(), "x", x, "a tensor");
  const int a = split_op.axis(axis, x);
  int64_t left = x.dim(a);
  bool fits = true;
  for (const int64_t size : sizes) {
    fits = fits && size >= 0 && size <= left;
    left -= fits ? size : 0;
  }
  split_op.require(fits && left == 0, "sizes", fmt::format("[{}]", fmt::join(sizes, ",")),
                   "sizes with the sum {}, the size of axis {} of {}", x.dim(a), axis, x);
  return parts_of(split_op, x, a, {sizes.begin(), sizes.end()});
}

Tensors chunk(const Tensor& x, int axis, int64_t n) {
  chunk_op.require(x.defined(), "x", x, "a tensor");
  const int a = chunk_op.axis(axis, x);
  chunk_op.require(n >= 1 && x.dim(a) % n == 0, "n", n, "a divisor of {}, the size of axis {} of {}", x.dim(a), axis,
                   x);
  return parts_of(chunk_op, x, a, std::vector<int64_t>(static_cast<size_t>(n), x.dim(a) / n));
}

}  // namespace margay
