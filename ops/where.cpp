#include "ops/where.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op where_op{"where", [] {
                    const auto call = [](const Tensors& in) { return Tensors{where(in[0], in[1], in[2])}; };
                    return Samples{
                        {.inputs = {mask({3, 5}), real({3, 5}), real({3, 5})}, .call = call},
                        {.inputs = {mask({3, 1, 5}), real({4, 1}), real({})}, .call = call, .name = "broadcast"},
                        {.inputs = {mask({4, 1}), real({4, 37}), real({37})}, .call = call, .name = "one flag a row"},
                        {.inputs = {mask({37}), real({4, 1}), real({4, 37})}, .call = call, .name = "one value a row"},
                        {.inputs = {mask({}), real({}), real({})}, .call = call, .name = "0-d"},
                        {.inputs = {mask({0, 1}), real({1, 3}), real({})}, .call = call, .name = "empty"},
                        {.inputs = {mask({5}), ids({2, 5}, 0, 9), ids({5}, 0, 9)}, .call = call, .name = "integers"}};
                  }};

const Op masked_fill_op{"masked_fill", [] {
                          const auto call = [](const Tensors& in) { return Tensors{masked_fill(in[0], in[1], -7)}; };
                          return Samples{{.inputs = {real({3, 5}), mask({3, 5})}, .call = call},
                                         {.inputs = {real({2, 3, 5}), mask({3, 1})}, .call = call, .name = "broadcast"},
                                         {.inputs = {real({2, 0}), mask({1})}, .call = call, .name = "empty"},
                                         {.inputs = {ids({3, 5}, 0, 9), mask({5})}, .call = call, .name = "integers"}};
                        }};

Tensor choose(const Op& op, const Tensor& mask, const Tensor& a, const Tensor& b, const Shape& shape) {
  Tensor y = empty(shape, a.dtype(), a.device());
  op.launch<kernels::Where>(a, [&]<class T>(kernels::Where<T>& args) {
    const auto spread = [&](const Tensor& t) { return broadcast_strides(t.shape(), t.strides(), shape); };
    args = {mask.strided<bool>().data,
            a.strided<T>().data,
            b.strided<T>().data,
            y.data<T>(),
            shape,
            spread(mask),
            spread(a),
            spread(b)};
  });
  return y;
}

void require_mask(const Op& op, const Tensor& mask, const char* reference_arg, const Tensor& reference) {
  op.require(mask.defined() && mask.dtype() == DType::boolean && mask.device() == reference.device(), "mask", mask,
             "of dtype bool on the device of {} {}", reference_arg, reference);
}

}  // namespace

Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b) {
  const OpScope scope(where_op.name());
  where_op.require(a.defined(), "a", a, "a tensor");
  where_op.require_like("b", b, "a", a);
  require_mask(where_op, mask, "a", a);
  Shape values, shape;
  where_op.require(broadcast(a.shape(), b.shape(), values), "b", b, "of a shape that broadcasts with a {}", a);
  where_op.require(broadcast(mask.shape(), values, shape), "mask", mask,
                   "of a shape that broadcasts with a {} and b {}", a, b);
  return where_op.record(
      choose(where_op, mask, a, b, shape), {mask, a, b},
      [mask = Saved(mask)](const VjpContext& context) {
        const Tensor& dy = context.cotangent();
        const Tensor zero = zeros({}, dy.dtype(), dy.device());
        return Tensors{Tensor(), context.wanted(1) ? choose(where_op, mask, dy, zero, dy.shape()) : Tensor(),
                       context.wanted(2) ? choose(where_op, mask, zero, dy, dy.shape()) : Tensor()};
      },
      CotangentLayout::strided);
}

Tensor masked_fill(const Tensor& x, const Tensor& mask, double value) {
  const OpScope scope(masked_fill_op.name());
  masked_fill_op.require(x.defined(), "x", x, "a tensor");
  require_mask(masked_fill_op, mask, "x", x);
  Shape shape;
  masked_fill_op.require(broadcast(x.shape(), mask.shape(), shape) && shape == x.shape(), "mask", mask,
                         "of a shape that broadcasts to that of x {}", x);
  const Tensor filler = full({}, value, x.dtype(), x.device());
  return masked_fill_op.record(
      choose(masked_fill_op, mask, filler, x, shape), {x, mask},
      [mask = Saved(mask)](const Tensor& dy) {
        const Tensor zero = zeros({}, dy.dtype(), dy.device());
        return Tensors{choose(masked_fill_op, mask, zero, dy, dy.shape()), Tensor()};
      },
      CotangentLayout::strided);
}

}  // namespace margay
