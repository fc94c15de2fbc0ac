#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/cpu/gemm_kernel.h"
#include "ops/cpu/simd.h"
#include "ops/heads.h"

// Rows of attention heads as kernels read them.

namespace margay::kernels {

/// Rows of one head of a [B,H,L,dh] view.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};
template <class T>
Rows<T> head_rows(T* data, const HeadStrides& strides, int64_t batch, int64_t head) {
  return {data + batch * strides.batch + head * strides.head, strides.row};
}

template <class T>
T dot(const T* x, const T* y, int64_t n) {
  using Vec = simd::Vec<T>;
  Vec sum(T(0));
  for (int64_t d = 0; d < n; d += Vec::size) sum += Vec::load(x + d, n - d) * Vec::load(y + d, n - d);
  return reduce_add(sum);
}

/// transposed[d * stride + i] = rows[i][d], a lane per row; lanes up to the next full vector are 0.
template <class T>
void pack_transposed(const Rows<const T>& rows, int64_t count, int64_t dh, T* transposed, int64_t stride) {
  constexpr int64_t block = blas::kLanes<T>, lanes = simd::Vec<T>::size;
  for (int64_t i = 0; i < (count + lanes - 1) / lanes * lanes; i += block) {
    for (int64_t d = 0; d < dh; d += block) {
      T* const to = transposed + d * stride + i;
      if (i + block <= count && d + block <= dh) {
        blas::transpose_block(rows[i] + d, rows.stride, to, stride);
        continue;
      }
      for (int64_t c = 0; c < std::min(block, dh - d); ++c)
        for (int64_t r = 0; r < block; ++r) to[c * stride + r] = i + r < count ? rows[i + r][d + c] : T(0);
    }
  }
}

}  // namespace margay::kernels
