#include "ops/binary.h"

#include "engine/launch.h"
#include "ops/unary.h"

namespace margay {
namespace {

using Function = Tensor (*)(const Operand&, const Operand&);

// Checks the arguments; returns the one that tells dtype and device.
const Tensor& check(const Op& op, const Operand& a, const Operand& b, bool floats_only) {
  const Tensor& like = a.is_tensor() ? a.tensor() : b.tensor();
  const char* name = a.is_tensor() ? "a" : "b";
  op.require(like.defined(), name, like, "defined");
  if (floats_only) op.require_float(name, like);
  if (a.is_tensor() && b.is_tensor()) op.require_like("b", b.tensor(), "a", like);
  return like;
}

Shape shape_of(const Operand& operand) { return operand.is_tensor() ? operand.tensor().shape() : Shape{}; }

Shape broadcast_shape(const Op& op, const Operand& a, const Operand& b) {
  Shape shape;
  op.require(broadcast(shape_of(a), shape_of(b), shape), "b", b.tensor(), "broadcastable with a {}", a.tensor());
  return shape;
}

// The argument of a kernel; an undefined tensor stands for a number.
template <class T>
kernels::BroadcastOperand<T> operand(const Tensor& tensor, double scalar, const Shape& shape) {
  if (!tensor.defined()) return {nullptr, broadcast_strides({}, {}, shape), static_cast<T>(scalar)};
  return {tensor.strided<const T>().data, broadcast_strides(tensor.shape(), tensor.strides(), shape), T(0)};
}

// What a VJP keeps: an argument only if a wanted gradient reads it.
struct Kept {
  Saved a, b;
  double scalar_a, scalar_b;
  Shape shape;
  functors::BinaryWithFactors functor;
};

template <class Functor>
Kept keep(const Operand& a, const Operand& b, const Shape& shape, Functor functor) {
  const auto wanted = [](const Operand& o) { return o.is_tensor() && o.tensor().requires_grad(); };
  const int read = (wanted(a) ? functor.da_reads : 0) | (wanted(b) ? functor.db_reads : 0);
  return {Saved(read & functors::kReadsA ? a.tensor() : Tensor()),
          Saved(read & functors::kReadsB ? b.tensor() : Tensor()),
          a.scalar(),
          b.scalar(),
          shape,
          functor};
}

Tensors vjp(const Op& op, const Kept& kept, const VjpContext& context) {
  const Tensor& dy = context.cotangent();
  Tensors gradients(2);
  std::array<bool, 2> accumulate{};
  for (size_t i = 0; i < 2; ++i) {
    if (!context.wanted(i)) continue;
    const Tensor& gathered = context.destination(i);
    accumulate[i] = gathered.defined() && gathered.shape() == kept.shape;
    gradients[i] = accumulate[i] ? gathered : empty_like(dy);
  }
  op.launch<kernels::BinaryBwd>(dy, [&]<class T>(kernels::BinaryBwd<T>& arguments) {
    const auto pointer = [](const Tensor& t) { return t.defined() ? t.data<T>() : nullptr; };
    arguments = {operand<T>(kept.a, kept.scalar_a, kept.shape),
                 operand<T>(kept.b, kept.scalar_b, kept.shape),
                 dy.data<T>(),
                 pointer(gradients[0]),
                 pointer(gradients[1]),
                 accumulate[0],
                 accumulate[1],
                 kept.shape,
                 kept.functor};
  });
  return gradients;
}

Tensor forward(const Op& op, const Operand& a, const Operand& b, functors::Binary functor) {
  const Tensor& like = check(op, a, b, true);
  const Shape shape = broadcast_shape(op, a, b);
  const Tensor y = empty(shape, like.dtype(), like.device());
  op.launch<kernels::BinaryFwd>(like, [&]<class T>(kernels::BinaryFwd<T>& arguments) {
    arguments = {operand<T>(a.tensor(), a.scalar(), shape), operand<T>(b.tensor(), b.scalar(), shape), y.data<T>(),
                 shape, functor};
  });
  return y;
}

template <class Functor>
Tensor apply(const Op& op, const Operand& a, const Operand& b, Functor functor) {
  const Tensor y = forward(op, a, b, functor);
  return op.record(
      y, {a.tensor(), b.tensor()},
      [&op, kept = keep(a, b, y.shape(), functor)](const VjpContext& context) { return vjp(op, kept, context); });
}

Tensor compare(const Op& op, const Operand& a, const Operand& b, functors::Comparison functor) {
  const Tensor& like = check(op, a, b, false);
  const Shape shape = broadcast_shape(op, a, b);
  const Tensor y = empty(shape, DType::boolean, like.device());
  op.launch<kernels::CompareFwd>(like, [&]<class T>(kernels::CompareFwd<T>& arguments) {
    arguments = {operand<T>(a.tensor(), a.scalar(), shape), operand<T>(b.tensor(), b.scalar(), shape), y.data<bool>(),
                 shape, functor};
  });
  return y;
}

Samples samples(Function function, double low = -2, double high = 2) {
  const auto call = [function](const Tensors& in) { return Tensors{function(in[0], in[1])}; };
  const auto pair = [&](const Shape& a, const Shape& b, std::string name) {
    return Sample{.inputs = {real(a, low, high), real(b, low, high)}, .call = call, .name = std::move(name)};
  };
  const auto with_number = [&](std::function<Tensors(const Tensors&)> with, std::string name) {
    return Sample{.inputs = {real({3, 19}, low, high)}, .call = std::move(with), .name = std::move(name)};
  };
  return {pair({3, 1, 17}, {3, 1, 17}, "same shape"),
          pair({5, 33}, {33}, "last axis"),
          pair({4, 1, 3}, {2, 1}, "both broadcast"),
          pair({7}, {2, 5, 1}, "first broadcast"),
          pair({}, {3, 2}, "one element"),
          pair({2, 0}, {1}, "empty"),
          with_number([function](const Tensors& in) { return Tensors{function(in[0], 0.7)}; }, "number last"),
          with_number([function](const Tensors& in) { return Tensors{function(0.7, in[0])}; }, "number first")};
}

Samples comparison_samples(Function function) {
  const auto call = [function](const Tensors& in) { return Tensors{function(in[0], in[1])}; };
  const auto with_number = [function](const Tensors& in) { return Tensors{function(in[0], 2)}; };
  return {{.inputs = {constant({3, 17}), constant({17})}, .call = call},
          {.inputs = {ids({4, 1, 9}, 0, 3), ids({5, 1}, 0, 3)}, .call = call, .name = "integers"},
          {.inputs = {ids({21}, 0, 5)}, .call = with_number, .name = "number"},
          {.inputs = {constant({0, 3}), constant({3})}, .call = call, .name = "empty"}};
}

const NoGradient no_gradient = no_grad("its result is boolean");

const Op add_op{"add", [] { return samples(add); }};
const Op sub_op{"sub", [] { return samples(sub); }};
const Op mul_op{"mul", [] { return samples(mul); }};
const Op div_op{"div", [] { return samples(div, 0.4, 3); }};
const Op maximum_op{"maximum", [] { return samples(maximum); }};
const Op minimum_op{"minimum", [] { return samples(minimum); }};
const Op less_op{"less", no_gradient, [] { return comparison_samples(less); }};
const Op less_equal_op{"less_equal", no_gradient, [] { return comparison_samples(less_equal); }};
const Op greater_op{"greater", no_gradient, [] { return comparison_samples(greater); }};
const Op greater_equal_op{"greater_equal", no_gradient, [] { return comparison_samples(greater_equal); }};
const Op equal_op{"equal", no_gradient, [] { return comparison_samples(equal); }};
const Op not_equal_op{"not_equal", no_gradient, [] { return comparison_samples(not_equal); }};

}  // namespace

// The gradients of sums and differences are the cotangent itself, but for the sign.
Tensor add(const Operand& a, const Operand& b) {
  return add_op.record(forward(add_op, a, b, functors::Add{}), {a.tensor(), b.tensor()}, [](const Tensor& dy) {
    return Tensors{dy, dy};
  });
}
Tensor sub(const Operand& a, const Operand& b) {
  return sub_op.record(forward(sub_op, a, b, functors::Sub{}), {a.tensor(), b.tensor()}, [](const VjpContext& context) {
    const Tensor& dy = context.cotangent();
    return Tensors{dy, context.wanted(1) ? neg(dy) : Tensor()};
  });
}
Tensor mul(const Operand& a, const Operand& b) { return apply(mul_op, a, b, functors::Mul{}); }
Tensor div(const Operand& a, const Operand& b) { return apply(div_op, a, b, functors::Div{}); }
Tensor maximum(const Operand& a, const Operand& b) { return apply(maximum_op, a, b, functors::Maximum{}); }
Tensor minimum(const Operand& a, const Operand& b) { return apply(minimum_op, a, b, functors::Minimum{}); }
Tensor operator-(const Tensor& a) { return neg(a); }

Tensor less(const Operand& a, const Operand& b) { return compare(less_op, a, b, functors::Less{}); }
Tensor less_equal(const Operand& a, const Operand& b) { return compare(less_equal_op, a, b, functors::LessEqual{}); }
Tensor greater(const Operand& a, const Operand& b) { return compare(greater_op, a, b, functors::Greater{}); }
Tensor greater_equal(const Operand& a, const Operand& b) {
  return compare(greater_equal_op, a, b, functors::GreaterEqual{});
}
Tensor equal(const Operand& a, const Operand& b) { return compare(equal_op, a, b, functors::Equal{}); }
Tensor not_equal(const Operand& a, const Operand& b) { return compare(not_equal_op, a, b, functors::NotEqual{}); }

}  // namespace margay
