#pragma once
#include <algorithm>

#include "engine/op.h"

namespace margay {

/// How a long convolution is computed. Which of the two is faster depends on the shape; `by_shape` knows.
enum class ConvMethod : uint8_t { by_shape, direct, fft };

/// Long causal convolution of every channel with its own filter, and a skip:
/// y[b,t,c] = D[c] u[b,t,c] + sum over w < min(K, t + 1) of kernel[c,w] u[b,t-w,c], tap 0 weighs the current token.
///
/// u [B,L,C]; kernel [C,K], K > 0, with any strides (a transposed [K,C] is read as it lies); D [C] or undefined for no
/// skip. Result [B,L,C], contiguous. Long filters go through complex Fourier transforms of n >= (L + K - 1) / 2 points:
/// O(B C n log n), and an error of about 1e-7 of the largest element of a sequence, by which a later token may also
/// change what stands before it. Short filters and sequences are summed directly, which is exact in its causality.
/// Throws OpError for shapes or dtypes that do not fit.
Tensor fft_conv(const Tensor& u, const Tensor& kernel, const Tensor& D = {}, ConvMethod method = ConvMethod::by_shape);

namespace kernels {

struct FftConvShape {
  int64_t B, L, C;
  int64_t K;  // taps that meet a token: at most L
  int64_t n;  // points of a transform
};

/// The parts of an FFT convolution's work and workspace for elements T. A piece of work is some sequences and some
/// vectors of neighbouring channels: as many as keep their filters' spectra in cache, since a row of a sequence is best
/// used up while it is at hand.
template <class T>
struct FftConvLayout {
  /// Channels of a vector: what a register of the build holds.
  static int64_t lanes();
  static constexpr int64_t kMostPieces = 16;
  static constexpr int64_t kGroupElements = int64_t{1} << 17;
  static constexpr int64_t kMostElements = int64_t{1} << 23;
  FftConvShape s;

  int64_t vectors() const { return (s.C + lanes() - 1) / lanes(); }
  /// Elements of n complex points for a vector of channels.
  int64_t block() const { return 2 * lanes() * s.n; }
  int64_t vectors_per_group() const { return std::max<int64_t>(1, kGroupElements / block()); }
  int64_t groups() const { return (vectors() + vectors_per_group() - 1) / vectors_per_group(); }
  /// Parts into which the sequences are cut.
  int64_t chunks() const {
    const int64_t fitting = std::min(kMostPieces / std::max<int64_t>(1, groups()),
                                     kMostElements / (std::max<int64_t>(1, vectors()) * block()));
    return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, s.B));
  }
  int64_t pieces() const { return groups() * chunks(); }
  /// Elements of each of two tables: twiddles and weights.
  int64_t table() const { return 2 * s.n; }
};

/// How a GPU does it: all channels of some sequences at a time, whose points then stay in its cache. Numbers of points
/// are powers of two.
template <class T>
struct FftConvRounds {
  static constexpr int64_t kLanes = 8;  // neighbouring channels that go together
  /// Points of a vector of channels in the shared memory of a block: 64 KiB.
  static constexpr int64_t kSharedPoints = (int64_t{1} << 16) / static_cast<int64_t>(2 * sizeof(acc_t<T>) * kLanes);
  FftConvShape s;

  int64_t vectors() const { return (s.C + kLanes - 1) / kLanes; }
  int64_t points() const { return std::min(kSharedPoints, s.n); }
  /// Elements of the points of a sequence.
  int64_t sequence() const { return 2 * vectors() * kLanes * s.n; }
  /// Sequences of a round.
  int64_t sequences() const {
    constexpr int64_t most_elements = int64_t{1} << 23;
    return std::clamp<int64_t>(most_elements / std::max<int64_t>(1, sequence()), 1, std::max<int64_t>(1, s.B));
  }
  /// Of transforms that take passes through the memory.
  int64_t outer_points() const { return s.n > points() ? sequences() * sequence() : 0; }
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
  acc_t<T>* workspace;  // tables; the filters' spectra; a block for each piece

  /// On a GPU a table, spectra, and the points of a round.
  static int64_t workspace_size(DeviceType device, const FftConvShape& s) {
    const FftConvRounds<T> rounds{s};
    if (device == DeviceType::cuda) return 2 * s.n + rounds.sequence() + rounds.outer_points();
    const FftConvLayout<acc_t<T>> layout{s};
    return 2 * layout.table() + (layout.vectors() + layout.pieces()) * layout.block();
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
  acc_t<T>* workspace;  // tables; the filters' spectra; two blocks for each piece; sums over each chunk of sequences

  /// On a GPU a table, spectra of filters and their gradients, of the inputs of a round, and the points of a round.
  static int64_t workspace_size(DeviceType device, const FftConvShape& s) {
    const FftConvRounds<T> rounds{s};
    if (device == DeviceType::cuda)
      return 2 * s.n + (2 + rounds.sequences()) * rounds.sequence() + rounds.outer_points();
    const FftConvLayout<acc_t<T>> layout{s};
    return 2 * layout.table() + (layout.vectors() * (1 + layout.chunks()) + 2 * layout.pieces()) * layout.block();
  }
};

/// Points of the transforms for sequences of L tokens and filters of K taps.
int64_t fft_conv_size(DeviceType device, int64_t L, int64_t K);

template <class T>
void run(Cpu, const FftConvFwd<T>&);
template <class T>
void run(Cuda, const FftConvFwd<T>&);
template <class T>
void run(Cpu, const FftConvBwd<T>&);
template <class T>
void run(Cuda, const FftConvBwd<T>&);

}  // namespace kernels
}  // namespace margay
