#include "ops/cast.h"

#include "engine/op.h"

namespace margay {
namespace {

const Op op{"cast", [] {
              const auto there_and_back = [](const Tensors& in) {
                return Tensors{cast(cast(in[0], DType::f64), in[0].dtype())};
              };
              const auto to = [](DType dtype) {
                return [dtype](const Tensors& in) { return Tensors{cast(in[0], dtype)}; };
              };
              return Samples{{.inputs = {real({3, 5})}, .call = there_and_back},
                             {.inputs = {real({0, 2})}, .call = there_and_back, .name = "empty"},
                             {.inputs = {real({3, 5}, -9, 9)}, .call = to(DType::i32), .name = "to integers"},
                             {.inputs = {ids({3, 5}, -9, 9)}, .call = to(DType::f32), .name = "from integers"},
                             {.inputs = {ids({3, 5}, -2, 2)}, .call = to(DType::boolean), .name = "to booleans"}};
            }};

}  // namespace

Tensor cast(const Tensor& x, DType dtype) {
  op.require(x.defined(), "x", x, "a tensor");
  if (x.dtype() == dtype) return x;
  const OpScope scope(op.name());
  Tensor y = x.to(dtype);
  if (!is_float(dtype)) return y;
  return op.record(
      y, {x}, [dtype = x.dtype()](const Tensor& dy) { return Tensors{dy.to(dtype)}; }, CotangentLayout::strided);
}

}  // namespace margay
