#pragma once
#include <array>
#include <initializer_list>
#include <span>

#include "engine/op.h"

namespace margay {

/// The axes of a reduction: one, several, or all. Negative axes count from the end.
class Axes {
 public:
  Axes(int axis) : Axes({axis}) {}  // NOLINT: an axis is a list of axes
  Axes(std::initializer_list<int> axes) : Axes(std::span(axes.begin(), axes.size())) {}
  explicit Axes(std::span<const int> axes);
  static Axes all();
  bool is_all() const { return all_; }
  const int* begin() const { return axes_.data(); }
  const int* end() const { return axes_.data() + count_; }

 private:
  std::array<int, kMaxDims> axes_{};
  int count_ = 0;
  bool all_ = false;
};

// Reductions of x [..] of a float dtype over `axes` -> y, contiguous, without these axes, or with size 1 there if
// `keepdim`. Sums run pairwise in acc_t<T>, cut by shape only. Throw OpError for an axis out of range or named twice.

/// 0 over no elements.
Tensor sum(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false);
/// NaN over no elements.
Tensor mean(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false);
/// The largest element; NaN if there is one. The gradient goes to its first occurrence in row-major order. Throws
/// OpError over no elements.
Tensor max(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false);
/// log(sum(e^x)) without overflow; -infinity over no elements.
Tensor logsumexp(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false);
/// sum((x - mean)^2) / (n - correction) over n elements each.
Tensor var(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false, double correction = 0);
/// sqrt(sum(x^2)); its gradient is 0 where it is 0.
Tensor norm2(const Tensor& x, const Axes& axes = Axes::all(), bool keepdim = false);

/// y[t] = x[0] + ... + x[t] along `axis`; with `reverse`, y[t] = x[t] + ... + x[last]. Running sums are kept in f64.
Tensor cumsum(const Tensor& x, int axis, bool reverse = false);

namespace kernels {

enum class Reduction { sum, mean, max, logsumexp, var, norm2 };

/// What a stretch of a row contributes; T is an accumulator.
template <class T>
struct ReducePartial {
  T value,
      extra;  // sums; max: the value; logsumexp: maximum and sum relative to it; var: mean, sum of squared deviations
  int64_t count;  // var: number of elements; max: index of the value in its row
};

/// y[o, i] = reduction of x[o, 0 .. n, i]; kinds other than sum and mean have inner = 1.
template <class T>
struct ReduceFwd {
  const T* x;
  T* y;
  T* mean;         // [outer], for var
  int64_t* index;  // [outer], for max
  void* workspace;
  int64_t outer, n, inner;
  Reduction kind;
  double correction;
  /// Rows are reduced in stretches of kRowStretch elements (inner = 1) or kColumnStretch rows, which are then combined
  /// in order.
  static constexpr int64_t kRowStretch = 16384, kColumnStretch = 256;
  static int64_t stretches(int64_t n, int64_t inner) {
    const int64_t length = inner == 1 ? kRowStretch : kColumnStretch;
    return (n + length - 1) / length;
  }
  /// Bytes of the workspace: ReducePartial [outer, stretches], or acc_t<T> [outer, stretches, inner] where inner > 1.
  static int64_t workspace_bytes(int64_t outer, int64_t n, int64_t inner) {
    const auto size = static_cast<int64_t>(inner == 1 ? sizeof(ReducePartial<acc_t<T>>) : sizeof(acc_t<T>));
    return stretches(n, inner) <= 1 ? 0 : checked_multiply(size * outer, stretches(n, inner) * inner);
  }
};
/// dx[o, index[o]] = dy[o], 0 elsewhere.
template <class T>
struct MaxBwd {
  const T* dy;
  const int64_t* index;
  T* dx;
  int64_t outer, n;
};
template <class T>
struct CumsumFwd {
  const T* x;
  T* y;
  int64_t outer, n, inner;
  bool reverse;
};
template <class T>
void run(Cpu, const ReduceFwd<T>&);
template <class T>
void run(Cuda, const ReduceFwd<T>&);
template <class T>
void run(Cpu, const MaxBwd<T>&);
template <class T>
void run(Cuda, const MaxBwd<T>&);
template <class T>
void run(Cpu, const CumsumFwd<T>&);
template <class T>
void run(Cuda, const CumsumFwd<T>&);

}  // namespace kernels
}  // namespace margay
