#pragma once
#include <algorithm>
#include <type_traits>

#include "engine/op.h"

namespace margay {

/// The indices (i32) that sort the last axis, ascending or descending; stable, so equal elements stay in their order.
/// A NaN counts as larger than every number. x [..., N] float -> [..., N], contiguous.
Tensor argsort(const Tensor& x, bool descending = false);

namespace kernels {

template <class T>
struct ArgSort {
  /// An integer of T's size.
  using Key = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const T* x;
  int32_t* y;
  Key* keys;       // workspace: [pieces(rows, N), N]
  int32_t* order;  // workspace: [pieces(rows, N), N]
  int64_t rows, N;
  bool descending;

  static int64_t rows_per_piece(int64_t N) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, N)); }
  static int64_t pieces(int64_t rows, int64_t N) { return (rows + rows_per_piece(N) - 1) / rows_per_piece(N); }
};
template <class T>
void run(Cpu, const ArgSort<T>&);
template <class T>
void run(Cuda, const ArgSort<T>&);

}  // namespace kernels
}  // namespace margay
