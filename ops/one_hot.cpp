#include "ops/one_hot.h"

#include "engine/launch.h"
#include "ops/index.h"

namespace margay {
namespace {

const Op op{"one_hot", no_grad("its input is integer"), [] {
              const auto call = [](const Tensors& in) { return Tensors{one_hot(in[0], 5)}; };
              return Samples{{.inputs = {ids({2, 3}, 0, 5)}, .call = call},
                             {.inputs = {ids({}, 0, 5)}, .call = call, .name = "one id"},
                             {.inputs = {ids({0}, 0, 5)}, .call = call, .name = "no ids"}};
            }};

}  // namespace

Tensor one_hot(const Tensor& ids, int64_t classes, DType dtype) {
  const OpScope scope(op.name());
  op.require(classes >= 0, "classes", classes, "at least 0");
  op.require(ids.defined() && ids.ndim() < kMaxDims, "ids", ids, "of less than {} axes", kMaxDims);
  const Tensor checked = checked_index(op, "ids", ids, ids, classes);
  Shape shape = ids.shape();
  shape.push_back(classes);
  Tensor y = empty(shape, dtype, ids.device());
  op.launch<kernels::OneHot>(y, [&]<class T>(kernels::OneHot<T>& a) {
    a = {checked.data<int32_t>(), y.data<T>(), checked.numel(), classes};
  });
  return y;
}

}  // namespace margay
