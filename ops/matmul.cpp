#include "ops/matmul.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"matmul", [] {
              const auto call = [](const Tensors& in) { return Tensors{matmul(in[0], in[1])}; };
              return Samples{
                  {.inputs = {real({3, 4}), real({4, 5})}, .call = call},
                  {.inputs = {real({17, 3}), real({3, 33})}, .call = call, .name = "odd sizes"},
                  {.inputs = {real({2, 3, 4}), real({2, 4, 5})}, .call = call, .name = "batch"},
                  {.inputs = {real({2, 1, 3, 4}), real({5, 4, 2})}, .call = call, .name = "broadcast both"},
                  {.inputs = {real({2, 3, 2, 3}), real({3, 4})}, .call = call, .name = "shared matrix"},
                  {.inputs = {real({3, 4}), real({2, 3, 4, 2})}, .call = call, .name = "shared left matrix"},
                  {.inputs = {real({4}), real({4})}, .call = call, .name = "vectors"},
                  {.inputs = {real({4}), real({2, 4, 3})}, .call = call, .name = "row"},
                  {.inputs = {real({2, 3, 4}), real({4})}, .call = call, .name = "column"},
                  {.inputs = {real({2, 1030}), real({1030, 2})}, .call = call, .name = "deep"},
                  {.inputs = {real({1, 1}), real({1, 1})}, .call = call, .name = "size 1"},
                  {.inputs = {real({3, 0}), real({0, 2})}, .call = call, .name = "no depth"},
                  {.inputs = {real({0, 3, 2}), real({2, 2})}, .call = call, .name = "no batch"},
                  {.inputs = {real({0, 3, 2}), real({1, 2, 2})}, .call = call, .name = "no batch, broadcast"},
                  {.inputs = {real({2, 0}), real({0, 0})}, .call = call, .name = "nothing"}};
            }};

/// A tensor of matrices, its leading axes expanded to those of the result.
struct Stack {
  Tensor tensor;
  int64_t ld = 1;
  bool transposed = false;  // matrices are stored by columns
  Shape strides;            // of the leading axes

  Stack flipped() const { return {tensor, ld, !transposed, strides}; }
};

/// What matmul(a, b) multiplies once vectors are matrices and a matrix shared by a whole batch has made rows of it.
struct Problem {
  Tensor a, b;  // at least 2-D
  Shape batch;
  int64_t m, n, k;
};

// Leading axes of a tensor of matrices.
Shape leading(const Shape& shape) { return shape.without(shape.ndim() - 1).without(shape.ndim() - 2); }

// Reads the matrices where they lie if their rows or columns are contiguous and do not overlap; else from a copy.
Stack stack_of(const Tensor& tensor, const Shape& batch) {
  const int last = tensor.ndim() - 1;
  const int64_t rows = tensor.shape()[last - 1], columns = tensor.shape()[last];
  const int64_t row_stride = rows > 1 ? tensor.strides()[last - 1] : std::max<int64_t>(1, columns);
  const int64_t column_stride = columns > 1 ? tensor.strides()[last] : std::max<int64_t>(1, rows);
  const bool by_rows = (columns <= 1 || column_stride == 1) && row_stride >= std::max<int64_t>(1, columns);
  const bool by_columns = (rows <= 1 || row_stride == 1) && column_stride >= std::max<int64_t>(1, rows);
  if (!by_rows && !by_columns) return stack_of(tensor.clone(), batch);
  const Shape strides = broadcast_strides(leading(tensor.shape()), leading(tensor.strides()), batch);
  return {tensor, by_rows ? row_stride : column_stride, !by_rows, strides};
}

// out (+)= left * right, summed over the leading axes that out, whose own are `kept`, does not have.
void multiply(const Tensor& out, bool add, Shape kept, const Stack& left, const Stack& right, const Shape& batch,
              int64_t m, int64_t n, int64_t k, Precision precision) {
  while (kept.ndim() < batch.ndim()) {  // aligned from the last axis, as in any broadcast
    Shape longer{1};
    for (const int64_t size : kept) longer.push_back(size);
    kept = longer;
  }
  struct Axes {
    Shape sizes, left, right;
    void push_back(int64_t size, int64_t left_stride, int64_t right_stride) {
      sizes.push_back(size);
      left.push_back(left_stride);
      right.push_back(right_stride);
    }
  } own, summed;
  for (int axis = 0; axis < batch.ndim(); ++axis)
    (kept[axis] == batch[axis] ? own : summed).push_back(batch[axis], left.strides[axis], right.strides[axis]);
  const int64_t scratch = kernels::Matmul<float>::workspace_size(own.sizes, summed.sizes, m, n, k);
  const Tensor workspace = empty({scratch}, acc_dtype(out.dtype()), out.device());
  op.launch<kernels::Matmul>(out, [&]<class T>(kernels::Matmul<T>& args) {
    args = {{left.tensor.strided<T>().data, left.ld, left.transposed, own.left, summed.left},
            {right.tensor.strided<T>().data, right.ld, right.transposed, own.right, summed.right},
            out.data<T>(),
            m,
            n,
            k,
            own.sizes,
            summed.sizes,
            add,
            workspace.data<acc_t<T>>(),
            precision};
  });
}

Tensor as_matrices(const Tensor& tensor, bool column) {
  if (tensor.ndim() != 1) return tensor;
  const int64_t size = tensor.dim(0), stride = tensor.strides()[0];
  return column ? tensor.view({size, 1}, {stride, 1}) : tensor.view({1, size}, {1, stride});
}

Problem problem_of(const Tensor& a, const Tensor& b) {
  Problem p{as_matrices(a, false), as_matrices(b, true), {}, 0, 0, 0};
  p.m = p.a.dim(-2), p.n = p.b.dim(-1), p.k = p.a.dim(-1);
  op.require(p.b.dim(-2) == p.k, "b", b, "[..., k, n], k = {} as in a {}", p.k, a);
  op.require(broadcast(leading(p.a.shape()), leading(p.b.shape()), p.batch), "b", b,
             "with leading axes that broadcast with those of a {}", a);
  if (p.b.ndim() == 2 && p.a.ndim() > 2 && p.a.is_contiguous()) {
    p.m *= p.batch.numel();
    p.a = p.a.view({p.m, p.k}, {p.k, 1});
    p.batch = {};
  }
  return p;
}

Tensors gradients(const VjpContext& context, const Tensor& a, const Tensor& b, Precision precision) {
  const Problem p = problem_of(a, b);
  const Tensor& dy = context.cotangent();
  Shape shape = p.batch;
  shape.push_back(p.m);
  shape.push_back(p.n);
  const Stack dc = stack_of(dy.view(shape, contiguous_strides(shape)), p.batch);
  const auto destination = [&](size_t i, const Tensor& like) {
    return context.destination(i).defined() ? context.destination(i) : empty_like(like);
  };
  Tensors result(2);
  if (context.wanted(0)) {
    result[0] = destination(0, a);
    multiply(result[0], context.destination(0).defined(), leading(p.a.shape()), dc, stack_of(p.b, p.batch).flipped(),
             p.batch, p.m, p.k, p.n, precision);
  }
  if (context.wanted(1)) {
    result[1] = destination(1, b);
    multiply(result[1], context.destination(1).defined(), leading(p.b.shape()), stack_of(p.a, p.batch).flipped(), dc,
             p.batch, p.k, p.n, p.m, precision);
  }
  return result;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  op.require_float("a", a);
  op.require(a.ndim() >= 1, "a", a, "at least 1-D");
  op.require_like("b", b, "a", a);
  op.require(b.ndim() >= 1, "b", b, "at least 1-D");
  const Problem p = problem_of(a, b);
  Shape shape;
  broadcast(a.ndim() > 1 ? leading(a.shape()) : Shape{}, b.ndim() > 1 ? leading(b.shape()) : Shape{}, shape);
  if (a.ndim() > 1) shape.push_back(a.dim(-2));
  if (b.ndim() > 1) shape.push_back(b.dim(-1));
  const Tensor c = empty(shape, a.dtype(), a.device());
  const Precision precision = product_precision();
  multiply(c, false, p.batch, stack_of(p.a, p.batch), stack_of(p.b, p.batch), p.batch, p.m, p.n, p.k, precision);
  return op.record(c, {a, b}, [a = Saved(a), b = Saved(b), precision](const VjpContext& context) {
    return gradients(context, a, b, precision);
  });
}

}  // namespace margay
