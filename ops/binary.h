#pragma once
#include "engine/op.h"
#include "ops/binary_functors.h"

// Elementwise functions of two arguments, broadcast against each other as in NumPy: a [..], b [..] of one float dtype
// and device -> y of the broadcast shape, contiguous. One argument may be a plain number, which has no gradient.
// Throw OpError where the shapes do not fit together, or on integer tensors.

namespace margay {

/// A tensor, or a number of its dtype, as an argument of an elementwise op.
class Operand {
 public:
  Operand(const Tensor& tensor) : tensor_(tensor), is_tensor_(true) {}  // NOLINT: stands for a tensor in calls
  Operand(double scalar) : scalar_(scalar) {}                           // NOLINT: stands for a number in calls
  bool is_tensor() const { return is_tensor_; }
  /// Undefined for a number.
  const Tensor& tensor() const { return tensor_; }
  double scalar() const { return scalar_; }

 private:
  Tensor tensor_;
  double scalar_ = 0;
  bool is_tensor_ = false;
};

Tensor add(const Operand& a, const Operand& b);
Tensor sub(const Operand& a, const Operand& b);
Tensor mul(const Operand& a, const Operand& b);
Tensor div(const Operand& a, const Operand& b);
/// The larger and the smaller of a and b; where they are equal, the gradient goes to a. NaN on either side gives NaN.
Tensor maximum(const Operand& a, const Operand& b);
Tensor minimum(const Operand& a, const Operand& b);

/// Comparisons of f32, f64, i32 or i64 tensors -> bool. No gradient. False where either side is NaN, but for not_equal.
Tensor less(const Operand& a, const Operand& b);
Tensor less_equal(const Operand& a, const Operand& b);
Tensor greater(const Operand& a, const Operand& b);
Tensor greater_equal(const Operand& a, const Operand& b);
Tensor equal(const Operand& a, const Operand& b);
Tensor not_equal(const Operand& a, const Operand& b);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator+(const Tensor& a, double b) { return add(a, b); }
inline Tensor operator+(double a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator-(const Tensor& a, double b) { return sub(a, b); }
inline Tensor operator-(double a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator*(const Tensor& a, double b) { return mul(a, b); }
inline Tensor operator*(double a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator/(const Tensor& a, double b) { return div(a, b); }
inline Tensor operator/(double a, const Tensor& b) { return div(a, b); }
Tensor operator-(const Tensor& a);

namespace kernels {

/// An argument read as if it had the broadcast shape: strides are 0 along broadcast axes. Without data, `scalar`
/// everywhere.
template <class T>
struct BroadcastOperand {
  const T* data;
  Shape strides;
  T scalar;
};
template <class T>
struct BinaryFwd {
  BroadcastOperand<T> a, b;
  T* y;
  Shape shape;
  functors::Binary functor;
};
/// da = dy * (dy/da), db likewise, in the broadcast shape: null where not wanted, added to where `accumulate_*`.
template <class T>
struct BinaryBwd {
  BroadcastOperand<T> a, b;
  const T* dy;
  T *da, *db;
  bool accumulate_a, accumulate_b;
  Shape shape;
  functors::BinaryWithFactors functor;
};
template <class T>
struct CompareFwd {
  using dtypes = Types<float, double, int32_t, int64_t>;
  BroadcastOperand<T> a, b;
  bool* y;
  Shape shape;
  functors::Comparison functor;
};
template <class T>
void run(Cpu, const BinaryFwd<T>&);
template <class T>
void run(Cuda, const BinaryFwd<T>&);
template <class T>
void run(Cpu, const BinaryBwd<T>&);
template <class T>
void run(Cuda, const BinaryBwd<T>&);
template <class T>
void run(Cpu, const CompareFwd<T>&);
template <class T>
void run(Cuda, const CompareFwd<T>&);

}  // namespace kernels
}  // namespace margay
