#pragma once
#include <algorithm>

#include "engine/op.h"

namespace margay {

// What the ops that read and write by i32 indices share. A tensor is seen as [outer, size, inner] around one axis.

/// Sizes before, along and behind an axis of a shape.
struct AxisSplit {
  AxisSplit(const Shape& shape, int axis);
  int64_t outer = 1, size = 1, inner = 1;
};

/// Throws OpError of `op` for `arg` unless `index` is an i32 tensor on the device of `like` with values in [0, size),
/// naming the first that is not. -1 is let through too if `or_missing`. Waits for the device, unless TrustedIndices.
/// Returns the index, contiguous.
Tensor checked_index(const Op& op, const char* arg, const Tensor& index, const Tensor& like, int64_t size,
                     bool or_missing = false);

/// y[o, j, :] = x[o, index[j], :] along an axis; rows of zeros for index -1. `y_shape` has index.numel() rows.
Tensor take_index(const Op& op, const Tensor& x, int axis, const Tensor& index, const Shape& y_shape);
/// The gradient of take_index with respect to x of `x_shape`: dx[o, index[j], :] += dy[o, j, :] over j, added to
/// `destination` where that is defined, else to zeros. Rows that occur several times are summed in a fixed order.
Tensor add_index(const Op& op, const Tensor& dy, int axis, const Tensor& index, const Shape& x_shape,
                 const Tensor& destination);

/// y[o, j, i] = x[o, index[o, j, i], i] along an axis. Index and y have the same shape.
Tensor take_along(const Op& op, const Tensor& x, int axis, const Tensor& index);
/// to[o, index[o, j, i], i] += from[o, j, i] over j in order; `to` is contiguous. All dtypes but bool.
void add_along(const Op& op, const Tensor& to, int axis, const Tensor& index, const Tensor& from);

namespace kernels {

/// first_bad[0] = the first j with index[j] outside of [low, high), -1 if there is none. T is always int32_t.
template <class T>
struct CheckIndex {
  using dtypes = Types<int32_t>;
  const int32_t* index;
  int64_t* first_bad;
  int64_t count, low, high;
};
template <class T>
struct TakeIndex {
  using dtypes = AllTypes;
  const T* x;
  const int32_t* index;
  T* y;
  int64_t outer, size, count, inner;
};
template <class T>
struct AddIndex {
  const T* dy;
  const int32_t* index;
  T* dx;            // added to
  int32_t* order;   // workspace: [order_size(size, count)]
  acc_t<T>* edges;  // workspace: [outer, pieces(count, inner), inner]
  int64_t outer, size, count, inner;

  static int64_t order_size(int64_t size, int64_t count) { return count + size + 1; }
  /// The occurrences, sorted by row, are cut into pieces of this many, so that a row which occurs very often is shared
  /// between them.
  static int64_t occurrences_per_piece(int64_t inner) {
    return std::max<int64_t>(32, 16384 / std::max<int64_t>(1, inner));
  }
  static int64_t pieces(int64_t count, int64_t inner) {
    const int64_t grain = occurrences_per_piece(inner);
    return (count + grain - 1) / grain;
  }
};
template <class T>
struct TakeAlong {
  using dtypes = AllTypes;
  const T* x;
  const int32_t* index;
  T* y;
  int64_t outer, size, count, inner;
};
template <class T>
struct AddAlong {
  using dtypes = Types<float, double, bf16, int32_t, int64_t>;
  const T* from;
  const int32_t* index;
  T* to;
  int64_t outer, size, count, inner;
};
template <class T>
void run(Cpu, const CheckIndex<T>&);
template <class T>
void run(Cuda, const CheckIndex<T>&);
template <class T>
void run(Cpu, const TakeIndex<T>&);
template <class T>
void run(Cuda, const TakeIndex<T>&);
template <class T>
void run(Cpu, const AddIndex<T>&);
template <class T>
void run(Cuda, const AddIndex<T>&);
template <class T>
void run(Cpu, const TakeAlong<T>&);
template <class T>
void run(Cuda, const TakeAlong<T>&);
template <class T>
void run(Cpu, const AddAlong<T>&);
template <class T>
void run(Cuda, const AddAlong<T>&);

}  // namespace kernels
}  // namespace margay
