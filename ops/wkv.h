#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/op.h"
#include "ops/stretches.h"

namespace margay {

/// What wkv runs over.
struct Wkv {
  Tensor w;             ///< [C] logarithm of the decay from one token to the next, negative
  Tensor u;             ///< [C] bonus of the current token
  Tensor k, v;          ///< [B,L,C]
  Tensor initial = {};  ///< the state that an earlier call returned; undefined before the first token
};

/// RWKV-4's attention without queries, for every channel: the mean of values
///   y_t = (sum over i < t of e^((t-1-i) w + k_i) v_i + e^(u + k_t) v_t) / (the same with 1 for v),
/// without overflow for keys of any size. Returns {y [B,L,C], state [B,3,C]}: numerator and denominator of the sum over
/// all tokens, both times e^-o, and o. The state has no gradient. A token changes no bit before it; the backward pass
/// recomputes states from checkpoints every kernels::WkvShape::chunk(device) tokens. Throws OpError for shapes or
/// dtypes that do not fit. Peng et al. 2023, arXiv:2305.13048, eq. 19 and appendix D.
Tensors wkv(const Wkv& in);

namespace kernels {

struct WkvShape {
  int64_t batch, length, channels;

  static constexpr int64_t kChunk = 64;  // tokens
  /// Tokens on the GPU, where the states of a chunk have to fit into registers.
  static constexpr int64_t kGpuChunk = 8;
  static constexpr int64_t kBlock = 16;  // channels
  static constexpr int64_t kMostPieces = 32;
  static constexpr int64_t kSerialWork = int64_t{1} << 12;
  int64_t work() const { return batch * length * channels; }
  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  int64_t blocks() const { return (channels + kBlock - 1) / kBlock; }
  /// The work is cut into ranges of sequences, and these, where they are few, into blocks of channels.
  int64_t sequence_pieces() const { return std::min(batch, kMostPieces); }
  int64_t channel_pieces() const {
    return std::clamp<int64_t>(kMostPieces / 2 / std::max<int64_t>(1, sequence_pieces()), 1,
                               std::max<int64_t>(1, blocks()));
  }
  int64_t pieces() const { return sequence_pieces() * channel_pieces(); }

  /// On the GPU a thread has one channel.
  Stretches gpu_stretches() const { return Stretches::of(length, batch * channels); }

  static constexpr int64_t chunk(DeviceType device) { return device == DeviceType::cuda ? kGpuChunk : kChunk; }
  int64_t checkpoints_size(DeviceType device) const {
    return batch * ((length + chunk(device) - 1) / chunk(device)) * 3 * channels;
  }
};

template <class T>
struct WkvInputs {
  WkvShape shape;
  const T *w, *u, *k, *v;
  const T* initial;  // null: before the first token
};

template <class T>
struct WkvFwd {
  WkvInputs<T> in;
  T *y, *final;
  acc_t<T>* checkpoints;  // [B, chunks, 3, C]: the states before every chunk(device) tokens; null if not wanted
  acc_t<T>* workspace;

  /// On the GPU, the state of every stretch.
  static int64_t workspace_size(const WkvShape& s, DeviceType device) {
    return device == DeviceType::cuda ? s.gpu_stretches().count * s.batch * 3 * s.channels : 0;
  }
};

template <class T>
struct WkvBwd {
  WkvInputs<T> in;
  const acc_t<T>* checkpoints;
  const T* dy;
  T *dw, *du, *dk, *dv;
  acc_t<T>* workspace;

  /// What a chunk of one block needs again backwards, and the sums of dw and du of a range of sequences.
  static constexpr int64_t kSaved = 7;
  static int64_t piece_size() { return kSaved * WkvShape::kChunk * WkvShape::kBlock; }
  static int64_t sums_size(const WkvShape& s) { return s.sequence_pieces() * 2 * s.channels; }
  /// On the GPU, of every stretch: the cotangents of its state, dw and du.
  static int64_t workspace_size(const WkvShape& s, DeviceType device) {
    return device == DeviceType::cuda ? s.gpu_stretches().count * s.batch * 5 * s.channels
                                      : s.pieces() * piece_size() + sums_size(s);
  }
};

template <class T>
void run(Cpu, const WkvFwd<T>&);
template <class T>
void run(Cuda, const WkvFwd<T>&);
template <class T>
void run(Cpu, const WkvBwd<T>&);
template <class T>
void run(Cuda, const WkvBwd<T>&);

}  // namespace kernels
}  // namespace margay
