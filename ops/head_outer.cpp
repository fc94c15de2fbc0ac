#include "ops/head_outer.h"

#include "engine/launch.h"

namespace margay {
namespace {

// Rows, heads and head size of some samples.
Samples samples_of(Tensor (*call)(const Tensor&, const Tensor&, int64_t), bool matrix) {
  struct Case {
    const char* name;
    int64_t rows, heads, head_dim;
  };
  Samples samples;
  for (const Case& c : {Case{"heads of 2", 5, 3, 2}, Case{"heads of 1", 4, 5, 1}, Case{"heads of 3", 3, 2, 3},
                        Case{"heads of 4", 3, 2, 4}, Case{"several pieces", 600, 3, 2}, Case{"no rows", 0, 3, 2},
                        Case{"no heads", 3, 0, 2}}) {
    const int64_t C = c.heads * c.head_dim;
    samples.push_back({.inputs = {real({c.rows, C}), real({c.rows, matrix ? C * c.head_dim : C})},
                       .call = [call, c](const Tensors& in) { return Tensors{call(in[0], in[1], c.head_dim)}; },
                       .name = c.name});
  }
  return samples;
}

Samples outer_samples() { return samples_of(head_outer, false); }
Samples product_samples() { return samples_of(head_product, true); }
const Op outer_op{"head_outer", outer_samples};
const Op product_op{"head_product", product_samples};

kernels::HeadShape check(const Op& op, const Tensor& a, const char* other_name, const Tensor& other, int64_t head_dim,
                         int64_t other_channels) {
  op.require_float("a", a);
  op.require(head_dim > 0, "head_dim", head_dim, "at least 1");
  op.require(a.ndim() == 2 && a.dim(1) % head_dim == 0, "a", a, "[N,C], C divisible by head_dim {}", head_dim);
  op.require_like(other_name, other, "a", a);
  op.require(other.shape() == Shape{a.dim(0), other_channels}, other_name, other, "[{},{}] for a {} and head_dim {}",
             a.dim(0), other_channels, a, head_dim);
  return {a.dim(0), a.dim(1) / head_dim, head_dim};
}

Tensor with_contiguous_channels(const Tensor& x) { return x.dim(1) <= 1 || x.strides()[1] == 1 ? x : x.contiguous(); }

Tensor outer(const Op& op, const kernels::HeadShape& shape, const Tensor& a, const Tensor& b) {
  const Tensor y = empty({shape.rows, shape.channels() * shape.head_dim}, a.dtype(), a.device());
  op.launch<kernels::HeadOuter>(a, [&]<class T>(kernels::HeadOuter<T>& args) {
    args = {shape, a.strided<T>().data, b.strided<T>().data, a.strides()[0], b.strides()[0], y.data<T>()};
  });
  return y;
}

Tensor product(const Op& op, const kernels::HeadShape& shape, const Tensor& a, const Tensor& m, bool transposed) {
  const Tensor y = empty({shape.rows, shape.channels()}, a.dtype(), a.device());
  op.launch<kernels::HeadProduct>(a, [&]<class T>(kernels::HeadProduct<T>& args) {
    args = {shape, a.strided<T>().data, m.data<T>(), a.strides()[0], y.data<T>(), transposed};
  });
  return y;
}

}  // namespace

// y = a b^T by heads, so da = dy b and db = dy^T a.
Tensor head_outer(const Tensor& a, const Tensor& b, int64_t head_dim) {
  const kernels::HeadShape shape = check(outer_op, a, "b", b, head_dim, a.defined() && a.ndim() == 2 ? a.dim(1) : 0);
  const Tensor left = with_contiguous_channels(a), right = with_contiguous_channels(b);
  return outer_op.record(outer(outer_op, shape, left, right), {a, b},
                         [shape, a = Saved(left), b = Saved(right)](const VjpContext& context) {
                           const Tensor& dy = context.cotangent();
                           return Tensors{context.wanted(0) ? product(outer_op, shape, b, dy, true) : Tensor(),
                                          context.wanted(1) ? product(outer_op, shape, a, dy, false) : Tensor()};
                         });
}

// y^T = a^T m by heads, so da = m dy and dm = a dy^T.
Tensor head_product(const Tensor& a, const Tensor& m, int64_t head_dim) {
  const kernels::HeadShape shape =
      check(product_op, a, "m", m, head_dim, a.defined() && a.ndim() == 2 ? a.dim(1) * head_dim : 0);
  const Tensor left = with_contiguous_channels(a), matrices = m.contiguous();
  return product_op.record(product(product_op, shape, left, matrices, false), {a, m},
                           [shape, a = Saved(left), m = Saved(matrices)](const VjpContext& context) {
                             const Tensor& dy = context.cotangent();
                             return Tensors{context.wanted(0) ? product(product_op, shape, dy, m, true) : Tensor(),
                                            context.wanted(1) ? outer(product_op, shape, a, dy) : Tensor()};
                           });
}

}  // namespace margay
