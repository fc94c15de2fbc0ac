#include "ops/embedding.h"

#include "ops/index.h"

namespace margay {
namespace {

const Op embedding_op{"embedding", [] {
                        const auto call = [](const Tensors& in) { return Tensors{embedding(in[0], in[1])}; };
                        return Samples{
                            {.inputs = {real({7, 5}), ids({2, 3}, 0, 7)}, .call = call},
                            {.inputs = {real({5, 3}), ids({1400}, 1, 4)}, .call = call, .name = "frequent rows"},
                            {.inputs = {real({8, 64}), ids({300}, 0, 8)}, .call = call, .name = "several pieces"},
                            {.inputs = {real({3, 600}), ids({130}, 0, 3)}, .call = call, .name = "rows over pieces"},
                            {.inputs = {real({3, 83}), ids({9}, 0, 3)}, .call = call, .name = "odd width"},
                            {.inputs = {real({1, 1}), ids({}, 0, 1)}, .call = call, .name = "one id"},
                            {.inputs = {real({4, 0}), ids({3}, 0, 4)}, .call = call, .name = "width 0"},
                            {.inputs = {real({4, 2}), ids({3, 0}, 0, 4)}, .call = call, .name = "no ids"}};
                      }};

const Op take_rows_op{"take_rows", [] {
                        const auto call = [](const Tensors& in) { return Tensors{take_rows(in[0], in[1])}; };
                        return Samples{
                            {.inputs = {real({6, 5}), ids({9}, -1, 6)}, .call = call},
                            {.inputs = {real({6, 5}), ids({4}, -1, 0)}, .call = call, .name = "all missing"},
                            {.inputs = {real({0, 5}), ids({2}, -1, 0)}, .call = call, .name = "from nothing"},
                            {.inputs = {real({6, 5}), ids({0}, 0, 6)}, .call = call, .name = "no rows"},
                            {.inputs = {ids({6, 2}, 0, 9), ids({9}, -1, 6)}, .call = call, .name = "integers"}};
                      }};

Tensor take(const Op& op, const Tensor& x, const Tensor& index, const Tensor& checked, const Shape& y_shape) {
  const Tensor y = take_index(op, x, 0, checked, y_shape);
  return op.record(y, {x, index}, [&op, index = Saved(checked), shape = x.shape()](const VjpContext& context) {
    return Tensors{add_index(op, context.cotangent(), 0, index, shape, context.destination(0)), Tensor()};
  });
}

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& ids) {
  const OpScope scope(embedding_op.name());
  embedding_op.require_float("weight", weight);
  embedding_op.require(weight.ndim() == 2, "weight", weight, "[V, d]");
  const Tensor checked = checked_index(embedding_op, "ids", ids, weight, weight.dim(0));
  embedding_op.require(ids.ndim() < kMaxDims, "ids", ids, "of less than {} axes", kMaxDims);
  Shape shape = ids.shape();
  shape.push_back(weight.dim(1));
  return take(embedding_op, weight, ids, checked, shape);
}

Tensor take_rows(const Tensor& x, const Tensor& rows) {
  const OpScope scope(take_rows_op.name());
  take_rows_op.require(x.defined() && x.ndim() == 2, "x", x, "[T, d]");
  const Tensor checked = checked_index(take_rows_op, "rows", rows, x, x.dim(0), true);
  take_rows_op.require(rows.ndim() == 1, "rows", rows, "[R]");
  return take(take_rows_op, x, rows, checked, {rows.dim(0), x.dim(1)});
}

}  // namespace margay
