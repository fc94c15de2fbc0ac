#pragma once
#include "engine/op.h"

namespace margay {

/// Causal convolution over time with one filter per group of neighbouring channels:
/// y[b,t,c] = bias[c] + sum over w < W of F[c,w] x[b,t-w,c], tap 0 weighs the current token.
///
/// x [B,L,C]; weight [W] (one filter for all channels), [H,W] (C % H == 0, one for each C/H neighbouring channels) or
/// [C,W] (depthwise); bias [C] or undefined; initial [B,W-1,C] holds what stands before x (its last row just before),
/// undefined for zeros. Result [B,L,C], contiguous. Computed directly at every width, every sum in the order of the
/// taps: a token changes no bit before it, and a sequence fed in parts (initial = the last W - 1 rows before) gives the
/// bits of the whole. x may be a view (copied only if C is not the innermost axis in memory).
/// Throws OpError for shapes or dtypes that do not fit.
Tensor conv1d_causal(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, const Tensor& initial = {});

namespace kernels {

struct ConvShape {
  int64_t B, L, C, W;
  int64_t filters;  // C / filters neighbouring channels share one

  static constexpr int64_t kRowsPerUnit = 256;
  static constexpr int64_t kMostPieces = 64;
  static constexpr int64_t kSerialWork = int64_t{1} << 16;  // less is done before other threads would have started
  /// Multiplications of one convolution.
  int64_t work() const { return B * L * C * W; }
  /// Stretches of time of one sequence.
  int64_t units() const { return B * ((L + kRowsPerUnit - 1) / kRowsPerUnit); }
  /// Elements of the taps of all channels, which are filled up to whole vectors.
  int64_t taps_size() const { return W * ((C + 15) / 16 * 16); }
  /// Of the sums of filter and bias gradients.
  int64_t sums_size() const { return taps_size() + C; }
  /// Pieces of the gradient's work, each some neighbouring units with its own sums.
  int64_t pieces() const {
    constexpr int64_t most_elements = int64_t{1} << 22;
    const int64_t fitting = std::max<int64_t>(1, most_elements / std::max<int64_t>(1, sums_size()));
    return std::min({units(), kMostPieces, fitting});
  }
};

template <class T>
struct Conv1dCausalFwd {
  ConvShape shape;
  const T* x;
  int64_t x_batch, x_row;  // distances in elements; C is contiguous
  const T *weight, *bias, *initial;
  T* y;
  acc_t<T>* workspace;  // the taps of every channel

  static int64_t workspace_size(const ConvShape& s) { return s.taps_size(); }
};

/// Null pointers for gradients that are not wanted.
template <class T>
struct Conv1dCausalBwd {
  ConvShape shape;
  const T *x, *dy;
  int64_t x_batch, x_row, dy_batch, dy_row;
  const T *weight, *initial;
  T *dx, *dweight, *dbias, *dinitial;
  acc_t<T>* workspace;  // the taps, then the sums of every piece

  static int64_t workspace_size(const ConvShape& s) { return s.taps_size() + s.pieces() * s.sums_size(); }
};

template <class T>
void run(Cpu, const Conv1dCausalFwd<T>&);
template <class T>
void run(Cuda, const Conv1dCausalFwd<T>&);
template <class T>
void run(Cpu, const Conv1dCausalBwd<T>&);
template <class T>
void run(Cuda, const Conv1dCausalBwd<T>&);

}  // namespace kernels
}  // namespace margay
