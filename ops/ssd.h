#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/op.h"
#include "ops/recurrence_chunks.h"
#include "ops/token_rows.h"

namespace margay {

/// What ssd runs over. The [B,L,..] arguments may be views: they are copied only if their last axis is not contiguous
/// in memory.
struct Ssd {
  Tensor x;             ///< [B,L,H*P] input, H heads side by side
  Tensor step;          ///< [B,L,H] step sizes, not negative
  Tensor A;             ///< [H] rates, negative for states that decay
  Tensor B;             ///< [B,L,N] what of the input enters the states, for all heads
  Tensor C;             ///< [B,L,N] what of the states is read
  Tensor D;             ///< [H] weight of the input itself
  Tensor initial = {};  ///< [B,H,N,P] states before the first token, zeros if undefined
  int64_t chunk = 256;  ///< tokens of a chunk at most; changes rounding and cost only
};

/// State-space duality scan (Mamba-2): for every head, with the scalar decay e^(step_t A) and a state h [N,P],
///   h_t = e^(step_t A) h_{t-1} + step_t B_t x_t^T,   y_t = C_t h_t + D x_t.
/// In chunks, inside which the sum over earlier tokens is a product of masked matrices; only the states at the ends of
/// chunks are carried on. Returns {y [B,L,H*P], the states after the last token [B,H,N,P]}, contiguous. A token changes
/// no bit before it. Throws OpError for shapes or dtypes that do not fit. Dao & Gu 2024, arXiv:2405.21060, section 6.
Tensors ssd(const Ssd& in);

namespace kernels {

struct SsdShape {
  int64_t batch, length, heads, head_dim, states;
  int64_t chunk;  // tokens of a chunk

  /// Longer chunks cost more: their inner part grows with their length, the rest is the same for each token.
  static constexpr int64_t kMostTokens = 64;
  static constexpr int64_t kFewestPieces = 16;
  static constexpr int64_t kSerialWork = int64_t{1} << 15;
  int64_t work() const { return batch * length * heads * head_dim * states; }
  int64_t width() const { return heads * head_dim; }
  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  /// A piece is one sequence, or some of its heads where sequences are few.
  int64_t head_pieces() const {
    return std::clamp<int64_t>(kFewestPieces / std::max<int64_t>(1, batch), 1, std::max<int64_t>(1, heads));
  }
  int64_t pieces() const { return batch * head_pieces(); }
  int64_t state_size() const { return states * head_dim; }
  /// On the GPU, where heads of all sequences are alike.
  int64_t all_heads() const { return batch * heads; }
  RecurrenceChunks gpu_chunks() const { return RecurrenceChunks::cut(all_heads(), length, states, head_dim); }
  int64_t gpu_decays_size() const { return gpu_chunks().borders(all_heads()) * states; }
  int64_t checkpoints_size(DeviceType device) const {
    const bool gpu = device == DeviceType::cuda;
    return state_size() * (gpu ? gpu_chunks().borders(all_heads()) : batch * chunks() * heads);
  }
  /// Row length of a chunk's square matrices and of its vectors.
  int64_t stride() const { return (chunk + 15) / 16 * 16; }
};

template <class T>
struct SsdInputs {
  SsdShape shape;
  TokenRows<const T> x, step, B, C;
  const T *A, *D, *initial;  // initial: null for zeros
};

template <class T>
struct SsdFwd {
  SsdInputs<T> in;
  T *y, *final;
  /// [B, chunks, H, N, P]: the states before every chunk; null if not wanted. On the GPU [B, H, chunks - 1, N, P]:
  /// those between its chunks, always wanted.
  acc_t<T>* checkpoints;
  acc_t<T>* workspace;

  static int64_t piece_size(const SsdShape& s) {
    return s.stride() * (2 * s.chunk + 5) + s.chunk * s.states + s.heads * s.state_size();
  }
  /// On the GPU the decays of chunks.
  static int64_t workspace_size(const SsdShape& s, DeviceType device) {
    return device == DeviceType::cuda ? s.gpu_decays_size() : s.pieces() * piece_size(s);
  }
};

/// A null dinitial is not wanted; a null dfinal is zero.
template <class T>
struct SsdBwd {
  SsdInputs<T> in;
  const acc_t<T>* checkpoints;
  const T *dy, *dfinal;
  T *dx, *dstep, *dA, *dB, *dC, *dD, *dinitial;
  acc_t<T>* workspace;

  static int64_t piece_size(const SsdShape& s) {
    return s.stride() * (4 * s.chunk + 7) + 2 * s.chunk * s.states + s.heads * s.state_size();
  }
  /// Of dA and dD: those of every head of every sequence.
  static int64_t sums_size(const SsdShape& s) { return 2 * s.batch * s.heads; }
  /// Of dB and dC: those of every range of heads, where there are several.
  static int64_t partials_size(const SsdShape& s) {
    return s.head_pieces() > 1 ? 2 * s.head_pieces() * s.batch * s.length * s.states : 0;
  }
  /// On the GPU: gradients of C_t and of step_t B_t, and of the decay, for every token of every head, and what the
  /// states after the last token add to that of the decay; gradients of the states between chunks, and the decays of
  /// chunks; dA and dD of every chunk of every head.
  static int64_t gpu_size(const SsdShape& s) {
    return s.all_heads() * (s.length * (2 * s.states + 1) + s.states + 2 * s.gpu_chunks().count) +
           s.checkpoints_size(DeviceType::cuda) + s.gpu_decays_size();
  }
  static int64_t workspace_size(const SsdShape& s, DeviceType device) {
    return device == DeviceType::cuda ? gpu_size(s) : s.pieces() * piece_size(s) + sums_size(s) + partials_size(s);
  }
};

template <class T>
void run(Cpu, const SsdFwd<T>&);
template <class T>
void run(Cuda, const SsdFwd<T>&);
template <class T>
void run(Cpu, const SsdBwd<T>&);
template <class T>
void run(Cuda, const SsdBwd<T>&);

}  // namespace kernels
}  // namespace margay
