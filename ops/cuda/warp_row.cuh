#pragma once
#include <fmt/format.h>

#include "engine/error.h"
#include "ops/cuda/rows.cuh"

namespace margay::kernels {

/// A row of a head that a warp has to itself: its elements lie in registers of the lanes, R each.
template <class A, int R>
struct WarpRow {
  A x[R] = {};

  WarpRow() = default;
  template <class T>
  __device__ WarpRow(const T* from, int64_t dh) {
    for (int r = 0; r < R; ++r) {
      const int64_t d = cuda::WarpTeam::rank() + cuda::kWarp * r;
      x[r] = d < dh ? A(from[d]) : A(0);
    }
  }
  template <class T>
  __device__ void store(T* to, int64_t dh) const {
    for (int r = 0; r < R; ++r) {
      const int64_t d = cuda::WarpTeam::rank() + cuda::kWarp * r;
      if (d < dh) to[d] = T(x[r]);
    }
  }
  /// In all lanes.
  __device__ A dot(const WarpRow& other) const {
    A sum(0);
    for (int r = 0; r < R; ++r) sum += x[r] * other.x[r];
    return cuda::WarpTeam::reduce<cuda::Sum>(sum);
  }
  __device__ void scale(A factor) {
    for (int r = 0; r < R; ++r) x[r] *= factor;
  }
  __device__ void add(A factor, const WarpRow& other) {
    for (int r = 0; r < R; ++r) x[r] += factor * other.x[r];
  }
};

/// Calls body.template operator()<R>() with enough registers for rows of `dh` elements, heads of the op `op`.
template <class Body>
void with_warp_rows(const char* op, int64_t dh, const Body& body) {
  if (dh <= 2 * cuda::kWarp) {
    body.template operator()<2>();
  } else if (dh <= 8 * cuda::kWarp) {
    body.template operator()<8>();
  } else if (dh <= 64 * cuda::kWarp) {
    body.template operator()<64>();
  } else {
    throw DeviceError(fmt::format("the CUDA kernels of {} take heads of size 2048 at most", op));
  }
}

}  // namespace margay::kernels
