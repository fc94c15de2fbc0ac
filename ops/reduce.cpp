#include "ops/reduce.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/launch.h"
#include "ops/binary.h"
#include "ops/unary.h"
#include "ops/where.h"

namespace margay {
namespace {

using kernels::Reduction;

// How a reduction reads its input: as [outer, n, inner], summed over n.
struct Plan {
  Tensor x;        // contiguous, axes in `order`
  Shape kept;      // shape of the result with size 1 for the reduced axes
  Shape result;    // shape of the result
  Shape permuted;  // shape of x
  std::array<int, kMaxDims> order{};
  int64_t outer = 1, n = 1, inner = 1;
};

std::array<bool, kMaxDims> reduced_axes(const Op& op, const Tensor& x, const Axes& axes) {
  std::array<bool, kMaxDims> reduced{};
  if (axes.is_all()) reduced.fill(true);
  for (const int axis : axes) {
    bool& flag = reduced[static_cast<size_t>(op.axis(axis, x))];
    op.require(!flag, "axes", axis, "named once each");
    flag = true;
  }
  return reduced;
}

// Puts the reduced axes last, unless `any_place` and they are neighbours (axes of size 1 aside).
Plan make_plan(const Op& op, const Tensor& x, const Axes& axes, bool keepdim, bool any_place) {
  op.require_float("x", x);
  const auto reduced = reduced_axes(op, x, axes);
  Plan plan;
  int changes = 0;  // between kept and reduced, along the axes
  bool last = false;
  for (int axis = 0; axis < x.ndim(); ++axis) {
    const bool flag = reduced[static_cast<size_t>(axis)];
    plan.kept.push_back(flag ? 1 : x.shape()[axis]);
    if (!flag || keepdim) plan.result.push_back(plan.kept[axis]);
    if (x.shape()[axis] == 1) continue;
    changes += flag != std::exchange(last, flag);
    (flag ? plan.n : changes < 2 ? plan.outer : plan.inner) *= x.shape()[axis];
  }
  const auto begin = plan.order.begin(), end = begin + x.ndim();
  std::iota(begin, end, 0);
  // changes: 0 nothing reduced, 1 the last axes, 2 axes in the middle, more: not neighbours.
  if (changes > 2 || (changes == 2 && !any_place)) {
    std::stable_partition(begin, end, [&](int axis) { return !reduced[static_cast<size_t>(axis)]; });
    plan.outer *= std::exchange(plan.inner, 1);
  }
  Shape strides;
  for (auto axis = begin; axis != end; ++axis) {
    plan.permuted.push_back(x.shape()[*axis]);
    strides.push_back(x.strides()[*axis]);
  }
  plan.x = x.view(plan.permuted, strides).contiguous();
  return plan;
}

struct Reduced {
  Tensor y, mean, index;
};

Reduced reduce(const Op& op, const Plan& plan, Reduction kind, double correction = 0) {
  const Tensor& x = plan.x;
  Reduced result{empty(plan.result, x.dtype(), x.device()), {}, {}};
  if (kind == Reduction::var) result.mean = empty(plan.kept, x.dtype(), x.device());
  if (kind == Reduction::max) result.index = empty({plan.outer}, DType::i64, x.device());
  Tensor workspace;
  op.launch<kernels::ReduceFwd>(x, [&]<class T>(kernels::ReduceFwd<T>& a) {
    workspace = empty({a.workspace_bytes(plan.outer, plan.n, plan.inner)}, DType::boolean, x.device());
    a = {x.data<T>(),
         result.y.data<T>(),
         result.mean.defined() ? result.mean.data<T>() : nullptr,
         result.index.defined() ? result.index.data<int64_t>() : nullptr,
         workspace.region().data,
         plan.outer,
         plan.n,
         plan.inner,
         kind,
         correction};
  });
  return result;
}

Tensor as_kept(const Tensor& result, const Shape& kept) { return result.view(kept, contiguous_strides(kept)); }

// dy, of the shape `kept` but for axes of size 1, read as if it had the shape of x.
Tensor spread(const Tensor& dy, const Shape& kept, const Shape& shape) {
  return dy.view(shape, broadcast_strides(kept, contiguous_strides(kept), shape));
}

using Function = Tensor (*)(const Tensor&, const Axes&, bool);

Samples samples(Function function) {
  const auto sample = [function](const Shape& shape, const Axes& axes, bool keepdim, std::string name) {
    const auto call = [=](const Tensors& in) { return Tensors{function(in[0], axes, keepdim)}; };
    return Sample{.inputs = {distinct(shape)}, .call = call, .name = std::move(name)};
  };
  return {sample({3, 37}, 1, false, "rows"),
          sample({2, 1100}, 1, false, "long rows"),
          sample({5, 1, 67}, {0, 1}, true, "columns"),
          sample({2, 3, 5}, 1, true, "middle axis"),
          sample({2, 3, 4, 5}, {-1, 1}, false, "axes that are not neighbours"),
          sample({4, 3, 2}, Axes::all(), false, "all"),
          sample({7, 1}, 1, false, "axis of size 1"),
          sample({3, 2}, Axes({}), false, "no axes"),
          sample({0, 3}, 1, false, "no rows"),
          sample({}, Axes::all(), false, "one element")};
}

Samples with_empty_axis(Samples all, Function function) {
  const auto call = [function](const Tensors& in) { return Tensors{function(in[0], 0, false)}; };
  all.push_back({.inputs = {real({0, 3})}, .call = call, .name = "no elements"});
  return all;
}

const Op sum_op{"sum", [] { return with_empty_axis(samples(sum), sum); }};
const Op mean_op{"mean", [] { return samples(mean); }};
const Op max_op{"max", [] { return samples(max); }};
const Op logsumexp_op{"logsumexp", [] { return with_empty_axis(samples(logsumexp), logsumexp); }};
const Op var_op{"var", [] {
                  Samples all =
                      samples([](const Tensor& x, const Axes& axes, bool keepdim) { return var(x, axes, keepdim, 0); });
                  const auto unbiased = [](const Tensors& in) { return Tensors{var(in[0], 1, false, 1)}; };
                  all.push_back({.inputs = {real({3, 9})}, .call = unbiased, .name = "unbiased"});
                  return all;
                }};
const Op norm2_op{"norm2", [] { return with_empty_axis(samples(norm2), norm2); }};
const Op cumsum_op{"cumsum", [] {
                     const auto sample = [](const Shape& shape, int axis, bool reverse, std::string name) {
                       const auto call = [=](const Tensors& in) { return Tensors{cumsum(in[0], axis, reverse)}; };
                       return Sample{.inputs = {real(shape)}, .call = call, .name = std::move(name)};
                     };
                     return Samples{sample({3, 41}, 1, false, "last axis"), sample({2, 9, 67}, 1, false, "middle axis"),
                                    sample({7, 3}, 0, true, "reverse"),     sample({4, 1}, -1, false, "size 1"),
                                    sample({0, 3}, 0, false, "empty"),      sample({3, 0}, 0, true, "no columns")};
                   }};

}  // namespace

Axes::Axes(std::span<const int> axes) : count_(static_cast<int>(axes.size())) {
  if (axes.size() > axes_.size())
    throw OpError("reduce", "axes", fmt::format("at most {}", kMaxDims), fmt::format("{}", axes.size()));
  std::copy(axes.begin(), axes.end(), axes_.begin());
}

Axes Axes::all() {
  Axes axes({});
  axes.all_ = true;
  return axes;
}

Tensor sum(const Tensor& x, const Axes& axes, bool keepdim) {
  const Plan plan = make_plan(sum_op, x, axes, keepdim, true);
  return sum_op.record(
      reduce(sum_op, plan, Reduction::sum).y, {x},
      [kept = plan.kept, shape = x.shape()](const Tensor& dy) { return Tensors{spread(dy, kept, shape)}; });
}

Tensor mean(const Tensor& x, const Axes& axes, bool keepdim) {
  const Plan plan = make_plan(mean_op, x, axes, keepdim, true);
  return mean_op.record(reduce(mean_op, plan, Reduction::mean).y, {x},
                        [kept = plan.kept, shape = x.shape(), n = static_cast<double>(plan.n)](const Tensor& dy) {
                          return Tensors{spread(div(dy, n), kept, shape)};
                        });
}

Tensor max(const Tensor& x, const Axes& axes, bool keepdim) {
  const Plan plan = make_plan(max_op, x, axes, keepdim, false);
  max_op.require(plan.n > 0, "x", x, "of at least one element along the axes");
  const Reduced result = reduce(max_op, plan, Reduction::max);
  Shape strides = x.shape();  // of the gradient, whose memory is in the order of plan.permuted
  const Shape permuted_strides = contiguous_strides(plan.permuted);
  for (int i = 0; i < x.ndim(); ++i) strides[plan.order[static_cast<size_t>(i)]] = permuted_strides[i];
  return max_op.record(result.y, {x},
                       [index = result.index, permuted = plan.permuted, shape = x.shape(), strides, outer = plan.outer,
                        n = plan.n](const Tensor& dy) {
                         const Tensor dx = empty(permuted, dy.dtype(), dy.device());
                         max_op.launch<kernels::MaxBwd>(dy, [&]<class T>(kernels::MaxBwd<T>& a) {
                           a = {dy.data<T>(), index.data<int64_t>(), dx.data<T>(), outer, n};
                         });
                         return Tensors{dx.view(shape, strides)};
                       });
}

// dx = dy e^(x - y).
Tensor logsumexp(const Tensor& x, const Axes& axes, bool keepdim) {
  const Plan plan = make_plan(logsumexp_op, x, axes, keepdim, false);
  const Tensor y = reduce(logsumexp_op, plan, Reduction::logsumexp).y;
  return logsumexp_op.record(y, {x}, [x = Saved(x), y = Saved(y), kept = plan.kept](const Tensor& dy) {
    // Where all of x is -infinity, so is y; the difference is to be -infinity and not NaN.
    const Tensor finite = clamp(y, std::numeric_limits<float>::lowest(), std::numeric_limits<double>::infinity());
    return Tensors{mul(exp(sub(*x, as_kept(finite, kept))), as_kept(dy, kept))};
  });
}

// dx = dy 2 (x - mean) / (n - correction).
Tensor var(const Tensor& x, const Axes& axes, bool keepdim, double correction) {
  const Plan plan = make_plan(var_op, x, axes, keepdim, false);
  const Reduced result = reduce(var_op, plan, Reduction::var, correction);
  const double scale = 2 / (static_cast<double>(plan.n) - correction);
  return var_op.record(result.y, {x}, [x = Saved(x), mean = result.mean, kept = plan.kept, scale](const Tensor& dy) {
    return Tensors{mul(sub(*x, mean), as_kept(mul(dy, scale), kept))};
  });
}

// dx = dy x / y.
Tensor norm2(const Tensor& x, const Axes& axes, bool keepdim) {
  const Plan plan = make_plan(norm2_op, x, axes, keepdim, false);
  const Tensor y = reduce(norm2_op, plan, Reduction::norm2).y;
  return norm2_op.record(y, {x}, [x = Saved(x), y = Saved(y), kept = plan.kept](const Tensor& dy) {
    // Comparisons have no kernel for bf16.
    const Tensor factor = masked_fill(div(dy, *y), equal(y->to(acc_dtype(y->dtype())), 0), 0);
    return Tensors{mul(*x, as_kept(factor, kept))};
  });
}

Tensor cumsum(const Tensor& x, int axis, bool reverse) {
  cumsum_op.require_float("x", x);
  const int along = cumsum_op.axis(axis, x);
  const Tensor input = x.contiguous(), y = empty_like(x);
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < x.ndim(); ++i) (i < along ? outer : inner) *= i == along ? 1 : x.shape()[i];
  cumsum_op.launch<kernels::CumsumFwd>(x, [&]<class T>(kernels::CumsumFwd<T>& a) {
    a = {input.data<T>(), y.data<T>(), outer, x.dim(along), inner, reverse};
  });
  return cumsum_op.record(y, {x}, [along, reverse](const Tensor& dy) { return Tensors{cumsum(dy, along, !reverse)}; });
}

}  // namespace margay
