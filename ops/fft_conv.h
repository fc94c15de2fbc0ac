#pragma once
#include "engine/op.h"

namespace margay {

/// How a long convolution is computed. Which of the two is faster depends on the shape; `by_shape` knows.
enum class ConvMethod : uint8_t { by_shape, direct, fft };

/// Long causal convolution of every channel with its own filter, and a skip:
/// y[b,t,c] = D[c] u[b,t,c] + sum over w < min(K, t + 1) of kernel[c,w] u[b,t-w,c], tap 0 weighs the current token.
///
/// u [B,L,C]; kernel [C,K], K > 0, with any strides (a transposed [K,C] is read as it lies); D [C] or undefined for no
/// skip. Result [B,L,C], contiguous. Long sequences go through Fourier transforms of at least L + K - 1 points, two
/// sequences as the real and imaginary part of one: O(B C n log n), and an error of about 1e-7 log n of the largest
/// element of the sequence, which a later token may change by as much. Short ones and short filters are summed
/// directly, which is exact in its causality.
/// Throws OpError for shapes or dtypes that do not fit.
Tensor fft_conv(const Tensor& u, const Tensor& kernel, const Tensor& D = {}, ConvMethod method = ConvMethod::by_shape);

namespace kernels {

struct FftConvShape {
  int64_t B, L, C;
  int64_t K;  // taps that meet a token: at most L
  int64_t n;  // points of a transform

  /// Two sequences are transformed at once.
  int64_t pairs() const { return (B + 1) / 2; }
};

/// The parts of an FFT convolution's workspace and work for elements T. Channels are taken one vector at a time; pairs
/// of sequences in chunks, each with memory of its own.
template <class T>
struct FftConvLayout {
  static constexpr int64_t kLanes = 64 / static_cast<int64_t>(sizeof(T));
  static constexpr int64_t kMostPieces = 32;
  static constexpr int64_t kMostElements = int64_t{1} << 23;
  FftConvShape s;

  int64_t vectors() const { return (s.C + kLanes - 1) / kLanes; }
  /// Elements of n complex points for a vector of channels.
  int64_t block() const { return 2 * kLanes * s.n; }
  int64_t chunks() const {
    const int64_t fitting = std::min(kMostPieces, kMostElements / block()) / std::max<int64_t>(1, vectors());
    return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, s.pairs()));
  }
  int64_t pieces() const { return vectors() * chunks(); }
  int64_t table() const { return 2 * s.n; }
};

template <class T>
struct FftConvFwd {
  FftConvShape shape;
  const T* u;
  int64_t u_batch, u_row;  // distances in elements; channels are contiguous
  const T* kernel;
  int64_t kernel_channel, kernel_tap;
  const T* D;  // null for no skip
  T* y;
  T* workspace;  // twiddles; the filters' spectra; a block for each piece

  static int64_t workspace_size(const FftConvShape& s) {
    const FftConvLayout<T> layout{s};
    return layout.table() + (layout.vectors() + layout.pieces()) * layout.block();
  }
};

/// Null pointers for gradients that are not wanted.
template <class T>
struct FftConvBwd {
  FftConvShape shape;
  const T *u, *dy;
  int64_t u_batch, u_row, dy_batch, dy_row;
  const T* kernel;
  int64_t kernel_channel, kernel_tap;
  const T* D;
  T *du, *dkernel, *dD;
  int64_t dkernel_channel, dkernel_tap;
  T* workspace;  // twiddles; the filters' spectra; for each piece two blocks, and one for its sum over pairs

  static int64_t workspace_size(const FftConvShape& s) {
    const FftConvLayout<T> layout{s};
    return layout.table() + (layout.vectors() + 3 * layout.pieces()) * layout.block();
  }
};

/// Points of the transforms for sequences of L tokens and filters of K taps.
int64_t fft_conv_size(int64_t L, int64_t K);

template <class T>
void run(Cpu, const FftConvFwd<T>&);
template <class T>
void run(Cpu, const FftConvBwd<T>&);

}  // namespace kernels
}  // namespace margay
