#include "ops/dropout.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"dropout", [] {
              const auto sample = [](const Shape& shape, double p, std::string name) {
                const auto call = [p](const Tensors& in) {
                  return Tensors{dropout(in[0], p, from_values<int64_t>({7, 3}, {2}, in[0].device()), 11)};
                };
                return Sample{.inputs = {real(shape)}, .call = call, .name = std::move(name)};
              };
              return Samples{sample({3, 7, 11}, 0.3, ""), sample({130}, 0.9, "several blocks"),
                             sample({5}, 0.5, "part of a block"), sample({4}, 0, "p = 0"),
                             sample({0, 3}, 0.5, "empty")};
            }};

Tensor apply(const Tensor& x, double p, const Tensor& rng, uint64_t stream) {
  const Tensor y = empty_like(x);
  op.launch<kernels::Dropout>(x, [&]<class T>(kernels::Dropout<T>& a) {
    a = {x.data<T>(), y.data<T>(), rng.data<int64_t>(), stream, x.numel(), p};
  });
  return y;
}

}  // namespace

Tensor dropout(const Tensor& x, double p, const Tensor& rng, uint64_t stream) {
  op.require_float("x", x);
  op.require(p >= 0 && p < 1, "p", p, "in [0, 1)");
  op.require(rng.defined() && rng.dtype() == DType::i64 && rng.shape() == Shape{2} && rng.device() == x.device(), "rng",
             rng, "i64[2] on the device of x {}", x);
  if (p == 0) return x;
  const Tensor state = rng.contiguous();
  return op.record(apply(x.contiguous(), p, state, stream), {x},
                   [p, rng = Saved(state), stream](const Tensor& dy) { return Tensors{apply(dy, p, rng, stream)}; });
}

}  // namespace margay
