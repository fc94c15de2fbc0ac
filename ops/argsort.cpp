#include "ops/argsort.h"

#include <limits>

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"argsort", no_grad("its result is integer"), [] {
              const auto up = [](const Tensors& in) { return Tensors{argsort(in[0])}; };
              const auto down = [](const Tensors& in) { return Tensors{argsort(in[0], true)}; };
              return Samples{{.inputs = {distinct({5, 83})}, .call = up},
                             {.inputs = {distinct({2, 3, 40})}, .call = down, .name = "descending"},
                             {.inputs = {constant({3, 40}, 0, 0)}, .call = down, .name = "ties"},
                             {.inputs = {distinct({40, 900})}, .call = up, .name = "several pieces"},
                             {.inputs = {constant({7, 1})}, .call = up, .name = "size 1"},
                             {.inputs = {constant({3, 0})}, .call = up, .name = "size 0"},
                             {.inputs = {constant({0, 3})}, .call = up, .name = "no rows"}};
            }};

}  // namespace

Tensor argsort(const Tensor& x, bool descending) {
  const OpScope scope(op.name());
  op.require_float("x", x);
  op.require(x.ndim() >= 1 && x.dim(-1) <= std::numeric_limits<int32_t>::max(), "x", x,
             "at least 1-D, of at most 2^31 - 1 elements along the last axis");
  const int64_t N = x.dim(-1), rows = N ? x.numel() / N : 0;
  const Shape workspace{kernels::ArgSort<float>::pieces(rows, N), N};
  const Tensor keys = empty(workspace, x.dtype() == DType::f64 ? DType::i64 : DType::i32, x.device());
  const Tensor order = empty(workspace, DType::i32, x.device()), source = x.contiguous();
  Tensor y = empty(x.shape(), DType::i32, x.device());
  op.launch<kernels::ArgSort>(source, [&]<class T>(kernels::ArgSort<T>& a) {
    using Key = typename kernels::ArgSort<T>::Key;
    a = {source.data<T>(), y.data<int32_t>(), keys.data<Key>(), order.data<int32_t>(), rows, N, descending};
  });
  return y;
}

}  // namespace margay
