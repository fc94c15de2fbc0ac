#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/op.h"
#include "ops/stretches.h"
#include "ops/token_rows.h"

namespace margay {

/// What selective_scan runs over. Optional arguments are left undefined. The [B,L,..] ones may be views: they are
/// copied only if their last axis is not contiguous in memory.
struct SelectiveScan {
  Tensor u;                     ///< [B,L,E] input
  Tensor delta;                 ///< [B,L,E] step sizes, before bias and softplus
  Tensor A;                     ///< [E,N] rates, negative for states that decay
  Tensor B;                     ///< [B,L,N] what of the input enters the states
  Tensor C;                     ///< [B,L,N] what of the states is read
  Tensor D = {};                ///< [E] weight of the input itself; optional
  Tensor z = {};                ///< [B,L,E] gate; optional
  Tensor delta_bias = {};       ///< [E] added to delta; optional
  bool delta_softplus = false;  ///< whether the step sizes are softplus(delta + delta_bias)
  Tensor initial = {};          ///< [B,E,N] states before the first token, zeros if undefined
};

/// Selective state-space scan (S6): for every channel e and state n
///   h_t = e^(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = (sum over n of C_t h_t + D u_t) silu(z_t)
/// with the step size dt = delta + delta_bias or its softplus; the last factor only with z.
/// Returns {y [B,L,E], the states after the last token [B,E,N]}, contiguous. States are kept in acc_t<T>; a token
/// changes no bit before it. The backward pass recomputes them from checkpoints every kernels::ScanShape::chunk(device)
/// tokens. Throws OpError for shapes or dtypes that do not fit. Gu & Dao 2023, arXiv:2312.00752, algorithm 2.
Tensors selective_scan(const SelectiveScan& in);

namespace kernels {

struct ScanShape {
  int64_t batch, length, channels, states;

  static constexpr int64_t kChunk = 64;  // tokens
  /// Tokens on the GPU, where the states of a chunk have to fit into registers.
  static constexpr int64_t kGpuChunk = 16;
  static constexpr int64_t kBlock = 16;  // channels
  static constexpr int64_t kMostPieces = 32;
  static constexpr int64_t kSerialWork = int64_t{1} << 15;  // less is done before other threads would have started
  /// Steps of one state.
  int64_t work() const { return batch * length * channels * states; }
  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  int64_t blocks() const { return (channels + kBlock - 1) / kBlock; }
  /// The work is cut into ranges of sequences, and these, where they are few, into ranges of blocks of channels.
  int64_t sequence_pieces() const { return std::min(batch, kMostPieces); }
  int64_t channel_pieces() const {
    return std::clamp<int64_t>(kMostPieces / 2 / std::max<int64_t>(1, sequence_pieces()), 1,
                               std::max<int64_t>(1, blocks()));
  }
  int64_t pieces() const { return sequence_pieces() * channel_pieces(); }
  /// Channels of the widest piece.
  int64_t piece_width() const { return (blocks() + channel_pieces() - 1) / channel_pieces() * kBlock; }

  /// On the GPU a thread has kGpuStates of the states of a channel, in every group of kGpuGroup.
  static constexpr int64_t kGpuStates = 4, kGpuGroup = 16;
  static constexpr int64_t kGpuBlock = 64;  // channels of which the backward pass sums dB and dC
  Stretches gpu_stretches() const { return Stretches::of(length, batch * channels * (kGpuGroup / kGpuStates)); }
  int64_t gpu_blocks() const { return (channels + kGpuBlock - 1) / kGpuBlock; }

  static constexpr int64_t chunk(DeviceType device) { return device == DeviceType::cuda ? kGpuChunk : kChunk; }
  int64_t checkpoints_size(DeviceType device) const {
    return batch * ((length + chunk(device) - 1) / chunk(device)) * states * channels;
  }
};

/// The arguments of SelectiveScan; null where undefined.
template <class T>
struct ScanInputs {
  ScanShape shape;
  TokenRows<const T> u, delta, B, C, z;
  const T *A, *D, *delta_bias, *initial;
  bool delta_softplus;
};

template <class T>
struct SelectiveScanFwd {
  ScanInputs<T> in;
  T *y, *final;
  acc_t<T>* checkpoints;  // [B, chunks, N, E]: the states before every chunk(device) tokens; null if not wanted
  acc_t<T>* workspace;

  static int64_t piece_size(const ScanShape& s) {
    return 2 * s.states * s.piece_width() + 3 * ScanShape::kChunk * ScanShape::kBlock;
  }
  /// On the GPU, of every stretch: its states and the sum of its step sizes.
  static int64_t workspace_size(const ScanShape& s, DeviceType device) {
    return device == DeviceType::cuda ? s.gpu_stretches().count * s.batch * s.channels * (s.states + 1)
                                      : s.pieces() * piece_size(s);
  }
};

/// Gradients of undefined arguments are null, and so may be the cotangent of the final states.
template <class T>
struct SelectiveScanBwd {
  ScanInputs<T> in;
  const acc_t<T>* checkpoints;
  const T *dy, *dfinal;
  T *du, *ddelta, *dA, *dB, *dC, *dD, *dz, *ddelta_bias, *dinitial;
  acc_t<T>* workspace;

  /// Elements of the sums over tokens that a piece leaves: of dA, dD and ddelta_bias.
  static int64_t sums_size(const ScanShape& s) { return (s.states + 2) * s.piece_width(); }
  static int64_t piece_size(const ScanShape& s) {
    return sums_size(s) + 3 * s.states * s.piece_width() +
           ((4 * ScanShape::kChunk + 1) * s.states + 5 * ScanShape::kChunk) * ScanShape::kBlock;
  }
  /// Elements of dB and dC, of every range of channels where there are several.
  static int64_t partials_size(const ScanShape& s) {
    return s.channel_pieces() > 1 ? 2 * s.channel_pieces() * s.batch * s.length * s.states : 0;
  }
  /// On the GPU: gradients of the states and the sums over tokens, of every stretch, and dB and dC of every block of
  /// channels.
  static int64_t gpu_size(const ScanShape& s) {
    return 2 * s.gpu_stretches().count * s.batch * s.channels * (s.states + 1) +
           2 * s.gpu_blocks() * s.batch * s.length * s.states;
  }
  static int64_t workspace_size(const ScanShape& s, DeviceType device) {
    return device == DeviceType::cuda ? gpu_size(s) : s.pieces() * piece_size(s) + partials_size(s);
  }
};

template <class T>
void run(Cpu, const SelectiveScanFwd<T>&);
template <class T>
void run(Cuda, const SelectiveScanFwd<T>&);
template <class T>
void run(Cpu, const SelectiveScanBwd<T>&);
template <class T>
void run(Cuda, const SelectiveScanBwd<T>&);

}  // namespace kernels
}  // namespace margay
