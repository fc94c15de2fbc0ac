#include "ops/pad.h"

#include <algorithm>

#include "engine/op.h"
#include "ops/view.h"

namespace margay {
namespace {

const Op pad_op{"pad", [] {
                  const auto call = [](const Tensors& in) { return Tensors{pad(in[0], 1, 2, 1, 0.5)}; };
                  const auto nothing = [](const Tensors& in) { return Tensors{pad(in[0], 0, 0, 0)}; };
                  return Samples{{.inputs = {real({2, 3, 4})}, .call = call},
                                 {.inputs = {real({5, 1})}, .call = call, .name = "last axis"},
                                 {.inputs = {real({3, 2})}, .call = nothing, .name = "by nothing"},
                                 {.inputs = {real({2, 0, 3})}, .call = call, .name = "empty axis"},
                                 {.inputs = {real({0, 3})}, .call = call, .name = "empty"},
                                 {.inputs = {ids({2, 3}, 1, 9)}, .call = call, .name = "integers"},
                                 {.inputs = {mask({2, 3})}, .call = call, .name = "booleans"}};
                }};

const Op shift_op{"shift", [] {
                    const auto by = [](int64_t n) {
                      return [n](const Tensors& in) { return Tensors{shift(in[0], -2, n)}; };
                    };
                    return Samples{{.inputs = {real({2, 5, 3})}, .call = by(1)},
                                   {.inputs = {real({2, 5, 3})}, .call = by(-2), .name = "towards the start"},
                                   {.inputs = {real({4, 2})}, .call = by(0), .name = "by nothing"},
                                   {.inputs = {real({4, 2})}, .call = by(4), .name = "all out"},
                                   {.inputs = {real({4, 2})}, .call = by(-9), .name = "further than all out"},
                                   {.inputs = {real({0, 2})}, .call = by(1), .name = "empty"},
                                   {.inputs = {ids({4, 2}, 1, 9)}, .call = by(1), .name = "integers"}};
                  }};

}  // namespace

Tensor pad(const Tensor& x, int axis, int64_t before, int64_t after, double value) {
  pad_op.require(x.defined(), "x", x, "a tensor");
  const int a = pad_op.axis(axis, x);
  pad_op.require(before >= 0, "before", before, "at least 0");
  pad_op.require(after >= 0, "after", after, "at least 0");
  const OpScope scope(pad_op.name());
  const int64_t size = x.dim(a);
  const Tensor y = empty(x.shape().with(a, before + size + after), x.dtype(), x.device());
  slice(y, a, 0, before).fill(value);
  slice(y, a, before, before + size).copy_from(x);
  slice(y, a, before + size, before + size + after).fill(value);
  return pad_op.record(
      y, {x}, [a, before, size](const Tensor& dy) { return Tensors{slice(dy, a, before, before + size)}; },
      CotangentLayout::strided);
}

Tensor shift(const Tensor& x, int axis, int64_t by) {
  shift_op.require(x.defined(), "x", x, "a tensor");
  const int a = shift_op.axis(axis, x);
  const OpScope scope(shift_op.name());
  const int64_t size = x.dim(a), forward = std::clamp<int64_t>(by, 0, size), back = std::clamp<int64_t>(by, -size, 0);
  const Tensor y = empty_like(x);
  slice(y, a, 0, forward).fill(0);
  slice(y, a, forward, size + back).copy_from(slice(x.detach(), a, -back, size - forward));
  slice(y, a, size + back, size).fill(0);
  return shift_op.record(
      y, {x}, [a, by = forward + back](const Tensor& dy) { return Tensors{shift(dy, a, -by)}; },
      CotangentLayout::strided);
}

}  // namespace margay
