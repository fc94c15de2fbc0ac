#pragma once
#include <algorithm>

#include "engine/op.h"
#include "ops/heads.h"
#include "ops/recurrence_chunks.h"

namespace margay {

/// phi of linear attention, row by row of f numbers:
/// identity: x;  elu1: x + 1 where x > 0, e^x elsewhere;  softmax: over the f numbers;
/// taylor2: [1, x, all products x_i x_j], weighted so that phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f).
enum class FeatureMap : uint8_t { identity, elu1, softmax, taylor2 };

struct LinearAttentionOptions {
  FeatureMap map = FeatureMap::identity;
  /// Divides y by the sum of the weights + eps.
  bool normalise = false;
  double eps = 0;
};

struct LinearAttentionResult {
  Tensor y, state;
};

/// Causal linear attention: y[b,h,t] = sum over s <= t of w[t,s] v[b,h,s], w[t,s] = phi(q[b,h,t]) . phi(k[b,h,s]), with
/// `normalise` divided by (sum over s <= t of w[t,s]) + eps. q and k [B,H,T,f], v [B,H,T,dv]. Katharopoulos et al.
/// 2020, arXiv:2006.16236, eqs. 8-9; taylor2 and its scale: Arora et al. 2024, arXiv:2402.18668.
///
/// Result [B,H,T,dv], with the memory order [B,T,H,dv]: merging the heads is a view. Time is linear in T: tokens of one
/// chunk meet in tiles of w, chunks meet through their states S = sum of phi(k) v^T; neither a T x T tensor nor the
/// features of the whole sequence are made, and the states take no more memory than k and v. A token changes no bit
/// before it. q, k and v may be views (copied only if the last axis is not contiguous in memory). The gradients of q, k
/// and v lie side by side in one [B,T,H(2f+dv)] buffer. Throws OpError for shapes, dtypes or options that do not fit.
Tensor linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttentionOptions& options);

/// The same for a stretch of longer sequences: `initial` (undefined: zeros) is the state before the first token, and
/// the state after the last one is returned. States are [B,H,F,dv], F the number of features, with `normalise`
/// [B,H,F,dv+1], whose last column is the sum of phi(k). Gradients pass through both.
LinearAttentionResult linear_attention_stretch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& initial,
                                               const LinearAttentionOptions& options);

namespace kernels {

struct LinearAttentionShape {
  int64_t B, H, T, f, dv;
  FeatureMap map;
  bool normalise;

  int64_t heads() const { return B * H; }
  /// Whether phi makes rows of f other numbers.
  bool maps_rows() const { return map == FeatureMap::elu1 || map == FeatureMap::softmax; }
  bool taylor() const { return map == FeatureMap::taylor2; }
  int64_t features() const { return taylor() ? 1 + f + f * (f + 1) / 2 : f; }
  int64_t state_columns() const { return dv + (normalise ? 1 : 0); }
  int64_t state_size() const { return features() * state_columns(); }

  static constexpr int64_t kTile = 64;              // tokens; divides every chunk
  static constexpr int64_t kSerialWork = 1 << 17;   // less is done before other threads would have started
  static constexpr int64_t kMostScratch = 1 << 22;  // elements of all pieces together
  static constexpr int64_t kMostPieces = 64;

  /// Tokens of a chunk. A token costs chunk (f + dv) / 2 multiplications inside its chunk and 2 F dv through states,
  /// none through states where there is one chunk: so it is one while that is cheaper and the heads alone can occupy
  /// the threads, else as few tokens as let the states take no more memory than keys and values.
  int64_t chunk() const {
    constexpr int64_t many_heads = 16;
    const int64_t row = std::max<int64_t>(1, f + dv), square = features() * dv;
    const bool one = heads() >= many_heads && T * row <= 4 * square;
    const int64_t tokens = std::min(one ? T : square / row, std::max<int64_t>(T, 1));
    return (std::max<int64_t>(tokens, 1) + kTile - 1) / kTile * kTile;
  }
  int64_t chunks() const { return (T + chunk() - 1) / chunk(); }
  /// On the GPU.
  RecurrenceChunks gpu_chunks() const { return RecurrenceChunks::cut(heads(), T, features(), state_columns()); }
  /// Elements of the states between the chunks.
  int64_t states_size(DeviceType device) const {
    const bool gpu = device == DeviceType::cuda;
    return state_size() * (gpu ? gpu_chunks().borders(heads()) : heads() * std::max<int64_t>(0, chunks() - 1));
  }
  int64_t units() const { return heads() * chunks(); }
  /// Pieces of the work, each some neighbouring units with their own scratch memory.
  int64_t pieces(int64_t scratch_size) const {
    return std::min(units(), std::clamp<int64_t>(kMostScratch / std::max<int64_t>(1, scratch_size), 1, kMostPieces));
  }
  /// Multiplications inside chunks.
  int64_t work() const { return heads() * T * std::min(T, chunk()) * (f + dv); }
  /// Elements of the mapped keys of a chunk.
  int64_t mapped_keys_size() const { return maps_rows() ? std::min(T, chunk()) * f : 0; }
};

template <class T>
struct LinearAttentionFwd {
  LinearAttentionShape shape;
  const T *q, *k, *v;
  HeadStrides q_strides, k_strides, v_strides;
  double eps;
  const acc_t<T>* initial;  // [B,H,F,columns] or null
  T* y;
  HeadStrides y_strides;
  acc_t<T>* inverse;    // [B,H,T] 1 / (sum of weights + eps), or null unless shape.normalise
  acc_t<T>* states;     // [B,H,chunks - 1,F,columns]: after chunk 0, 1, ... (those of the device)
  acc_t<T>* final;      // [B,H,F,columns] or null
  acc_t<T>* workspace;  // [workspace_size()]

  static constexpr int64_t kLanes = 256 / sizeof(acc_t<T>);  // rows of a transposed tile
  /// Of a piece: mapped keys of a chunk and queries of a tile, queries transposed, features transposed, weights.
  int64_t scratch_size() const {
    const LinearAttentionShape& s = shape;
    return s.mapped_keys_size() + (2 * s.f + s.features() + LinearAttentionShape::kTile) * kLanes;
  }
  /// On the GPU: features of queries and keys, and results before they are normalised, of all tokens.
  int64_t gpu_size() const { return shape.heads() * shape.T * (2 * shape.features() + shape.state_columns()); }
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? gpu_size() : shape.pieces(scratch_size()) * scratch_size();
  }
};

template <class T>
struct LinearAttentionBwd {
  LinearAttentionShape shape;
  const T *q, *k, *v, *y, *dy;
  HeadStrides q_strides, k_strides, v_strides, y_strides, dy_strides;
  const acc_t<T>* initial;  // [B,H,F,columns] or null
  const acc_t<T>* states;   // of the forward pass
  const acc_t<T>* inverse;  // [B,H,T], null unless shape.normalise
  const acc_t<T>* dfinal;   // [B,H,F,columns] or null
  T *dq, *dk, *dv;
  HeadStrides dq_strides, dk_strides, dv_strides;
  acc_t<T>* dstates;    // [B,H,chunks - 1,F,columns]: gradients of the states
  acc_t<T>* dinitial;   // [B,H,F,columns] or null
  acc_t<T>* workspace;  // [workspace_size()]

  static constexpr int64_t kLanes = 256 / sizeof(acc_t<T>);
  /// Of a piece: mapped keys of a chunk and queries of a tile; transposed: queries, cotangents, features and their
  /// gradients, gradients of rows; weights and their gradients.
  int64_t scratch_size() const {
    const LinearAttentionShape& s = shape;
    return s.mapped_keys_size() + (3 * s.f + s.dv + 2 * s.features() + 2 * LinearAttentionShape::kTile) * kLanes;
  }
  /// On the GPU: features of queries and keys, their gradients, and cotangents, of all tokens.
  int64_t gpu_size() const { return shape.heads() * shape.T * (4 * shape.features() + shape.state_columns()); }
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? gpu_size() : shape.pieces(scratch_size()) * scratch_size();
  }
};

template <class T>
void run(Cpu, const LinearAttentionFwd<T>&);
template <class T>
void run(Cuda, const LinearAttentionFwd<T>&);
template <class T>
void run(Cpu, const LinearAttentionBwd<T>&);
template <class T>
void run(Cuda, const LinearAttentionBwd<T>&);

}  // namespace kernels
}  // namespace margay
