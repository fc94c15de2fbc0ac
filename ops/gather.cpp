#include "ops/gather.h"

#include "ops/index.h"
#include "ops/view.h"

namespace margay {
namespace {

const Op index_select_op{"index_select", [] {
                           const auto along = [](int axis) {
                             return [axis](const Tensors& in) { return Tensors{index_select(in[0], axis, in[1])}; };
                           };
                           return Samples{
                               {.inputs = {real({3, 5, 4}), ids({7}, 0, 5)}, .call = along(1)},
                               {.inputs = {real({4, 6}), ids({3}, 0, 4)}, .call = along(0), .name = "first axis"},
                               {.inputs = {real({4, 6}), ids({9}, 0, 6)}, .call = along(-1), .name = "last axis"},
                               {.inputs = {real({2, 0, 3}), ids({0}, 0, 1)}, .call = along(1), .name = "empty"},
                               {.inputs = {ids({3, 5}, 0, 9), ids({4}, 0, 5)}, .call = along(1), .name = "integers"},
                               {.inputs = {mask({3, 5}), ids({4}, 0, 5)}, .call = along(1), .name = "booleans"}};
                         }};

const Op gather_op{
    "gather", [] {
      const auto along = [](int axis) {
        return [axis](const Tensors& in) { return Tensors{gather(in[0], axis, in[1])}; };
      };
      return Samples{
          {.inputs = {real({3, 5, 4}), ids({3, 7, 4}, 0, 5)}, .call = along(1)},
          {.inputs = {real({4, 6}), ids({2, 6}, 0, 4)}, .call = along(0), .name = "first axis"},
          {.inputs = {real({4, 6}), ids({4, 1}, 0, 6)}, .call = along(-1), .name = "one a row"},
          {.inputs = {real({2, 3, 1}), ids({1, 4, 5}, 0, 3)}, .call = along(1), .name = "broadcast"},
          {.inputs = {real({2, 3, 270}), ids({2, 5, 270}, 0, 3)}, .call = along(1), .name = "several pieces"},
          {.inputs = {real({2, 3}), ids({2, 0}, 0, 3)}, .call = along(1), .name = "nothing"},
          {.inputs = {ids({3, 5}, 0, 9), ids({3, 2}, 0, 5)}, .call = along(1), .name = "integers"},
          {.inputs = {mask({3, 5}), ids({3, 2}, 0, 5)}, .call = along(1), .name = "booleans"}};
    }};

const Op scatter_add_op{
    "scatter_add", [] {
      const auto along = [](int axis) {
        return [axis](const Tensors& in) { return Tensors{scatter_add(in[0], axis, in[1], in[2])}; };
      };
      return Samples{
          {.inputs = {real({3, 5, 4}), ids({3, 7, 4}, 0, 5), real({3, 7, 4})}, .call = along(1)},
          {.inputs = {real({4, 6}), ids({2, 6}, 0, 4), real({2, 6})}, .call = along(0), .name = "first axis"},
          {.inputs = {real({4, 6}), ids({4, 6}, 0, 6), real({4, 6})}, .call = along(-1), .name = "last axis"},
          {.inputs = {real({1, 2, 600}), ids({1, 2, 600}, 0, 2), real({1, 2, 600})}, .call = along(1), .name = "wide"},
          {.inputs = {real({2, 3}), ids({2, 0}, 0, 3), real({2, 0})}, .call = along(1), .name = "nothing"},
          {.inputs = {ids({3, 5}, 0, 9), ids({3, 2}, 0, 5), ids({3, 2}, 0, 9)}, .call = along(1), .name = "integers"}};
    }};

}  // namespace

Tensor index_select(const Tensor& x, int axis, const Tensor& index) {
  const OpScope scope(index_select_op.name());
  index_select_op.require(x.defined(), "x", x, "a tensor");
  const int a = index_select_op.axis(axis, x);
  const Tensor checked = checked_index(index_select_op, "index", index, x, x.dim(a));
  index_select_op.require(index.ndim() == 1, "index", index, "[n]");
  const Tensor y = take_index(index_select_op, x, a, checked, x.shape().with(a, index.dim(0)));
  return index_select_op.record(
      y, {x, index}, [a, index = Saved(checked), shape = x.shape()](const VjpContext& context) {
        return Tensors{add_index(index_select_op, context.cotangent(), a, index, shape, context.destination(0)),
                       Tensor()};
      });
}

Tensor gather(const Tensor& x, int axis, const Tensor& index) {
  const OpScope scope(gather_op.name());
  gather_op.require(x.defined(), "x", x, "a tensor");
  const int a = gather_op.axis(axis, x);
  const Tensor checked = checked_index(gather_op, "index", index, x, x.dim(a));
  Shape common;
  gather_op.require(index.ndim() == x.ndim() && broadcast(x.shape().with(a, 1), index.shape().with(a, 1), common),
                    "index", index, "of a shape that broadcasts with x {} but for axis {}", x, axis);
  const Shape x_shape = common.with(a, x.dim(a)), index_shape = common.with(a, index.dim(a));
  if (x_shape != x.shape() || index_shape != index.shape())
    return gather(expand(x, x_shape), axis, expand(checked, index_shape));
  const Tensor y = take_along(gather_op, x, a, checked);
  return gather_op.record(y, {x, index}, [a, index = Saved(checked), shape = x.shape()](const VjpContext& context) {
    const Tensor& dy = context.cotangent();
    const Tensor dx = context.destination(0).defined() ? context.destination(0) : zeros(shape, dy.dtype(), dy.device());
    add_along(gather_op, dx, a, index, dy);
    return Tensors{dx, Tensor()};
  });
}

Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& source) {
  const OpScope scope(scatter_add_op.name());
  scatter_add_op.require(x.defined() && x.dtype() != DType::boolean, "x", x, "of a dtype other than bool");
  const int a = scatter_add_op.axis(axis, x);
  const Tensor checked = checked_index(scatter_add_op, "index", index, x, x.dim(a));
  scatter_add_op.require(index.ndim() == x.ndim() && index.shape().with(a, x.dim(a)) == x.shape(), "index", index,
                         "of the shape of x {} but for axis {}", x, axis);
  scatter_add_op.require_like("source", source, "x", x);
  scatter_add_op.require(source.shape() == index.shape(), "source", source, "of the shape of index {}", index);
  const Tensor y = x.clone();
  add_along(scatter_add_op, y, a, checked, source);
  return scatter_add_op.record(y, {x, index, source}, [a, index = Saved(checked)](const VjpContext& context) {
    const Tensor& dy = context.cotangent();
    return Tensors{dy, Tensor(), context.wanted(2) ? take_along(scatter_add_op, dy, a, index) : Tensor()};
  });
}

}  // namespace margay
