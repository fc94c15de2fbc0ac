#pragma once
#include <initializer_list>

#include "engine/tensor.h"
#include "ops/token_rows.h"

// Views [B,H,L,dh] of memory in which heads may lie side by side: what ops on attention heads read and write.

namespace margay {
namespace kernels {

/// Distances in elements inside a [B,H,L,dh] view whose last axis is contiguous.
struct HeadStrides {
  int64_t batch, head, row;
};

}  // namespace kernels

inline kernels::HeadStrides head_strides(const Tensor& x) { return {x.strides()[0], x.strides()[1], x.strides()[2]}; }

/// Part `index` of a buffer [B,L,parts,H,dh], as [B,H,L,dh].
inline Tensor heads_view(const Tensor& buffer, int64_t index = 0) {
  const int64_t B = buffer.dim(0), L = buffer.dim(1), parts = buffer.dim(2), H = buffer.dim(3), dh = buffer.dim(4);
  return buffer.view({B, H, L, dh}, {L * parts * H * dh, dh, parts * H * dh, 1},
                     buffer.numel() > 0 ? index * H * dh : 0);
}

/// Uninitialised [B,H,L,width] tensors that lie side by side in one [B,L,H * (sum of widths)] buffer, like heads that
/// come from one projection.
inline Tensors packed_heads(int64_t B, int64_t H, int64_t L, std::initializer_list<int64_t> widths, DType dtype,
                            Device device) {
  int64_t row = 0, begin = 0;
  for (const int64_t width : widths) row += H * width;
  const Tensor buffer = empty({B, L, row}, dtype, device);
  Tensors parts;
  for (const int64_t width : widths) {
    parts.push_back(buffer.view({B, H, L, width}, {L * row, width, row, 1}, buffer.numel() > 0 ? begin : 0));
    begin += H * width;
  }
  return parts;
}

}  // namespace margay
