#pragma once
#include <algorithm>

#include "engine/op.h"
#include "ops/heads.h"
#include "ops/recurrence_chunks.h"

namespace margay {

struct GatedDeltaRuleResult {
  Tensor y, state;
};

/// Linear attention that forgets and corrects itself. With the state S [f,dv] of a head, S = 0 before the first token,
///   P = diag(e^log_decay[t]) S,   S = P + k[t] w^T,   y[t] = S^T q[t],   w = beta[t] (v[t] - P^T k[t]):
/// the value that P holds for the key k[t] is moved towards v[t]. Without `beta` nothing is corrected: w = v[t].
/// q and k [B,H,T,f], v [B,H,T,dv], beta [B,H,T] or undefined, log_decay undefined (nothing is forgotten), [B,H,T] or,
/// one for each feature, [B,H,T,f]. That is, of Yang et al. 2024, DeltaNet (arXiv:2406.06484, eq. 4: beta), Gated
/// DeltaNet (arXiv:2412.06464, eq. 10: both) and GLA (arXiv:2312.06635, eq. 3: decay for each feature), and retention
/// (Sun et al. 2023, arXiv:2307.08621, eq. 6: one decay).
///
/// Result [B,H,T,dv], with the memory order [B,T,H,dv]: merging the heads is a view. Computed token by token, so that
/// no decay overflows: the backward pass restarts from states kept every kChunk tokens. All inputs may be views (copied
/// only if the last axis of q, k, v or log_decay [B,H,T,f] is not contiguous in memory). The gradients of q, k and v
/// lie side by side in one [B,T,H(2f+dv)] buffer. Throws OpError for shapes or dtypes that do not fit.
Tensor gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay, const Tensor& beta);

/// The same for a stretch of longer sequences: `initial` [B,H,f,dv] (undefined: zeros) is the state before the first
/// token, and the state after the last one is returned. Gradients pass through both.
GatedDeltaRuleResult gated_delta_rule_stretch(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& log_decay, const Tensor& beta, const Tensor& initial);

namespace kernels {

enum class Decay : uint8_t { none, head, feature };

struct DeltaRuleShape {
  int64_t B, H, T, f, dv;
  Decay decay;

  static constexpr int64_t kChunk = 32;            // tokens between the states that are kept
  static constexpr int64_t kSerialWork = 1 << 17;  // less is done before other threads would have started
  static constexpr int64_t kMostScratch = 1 << 22;
  static constexpr int64_t kMostPieces = 64;

  int64_t heads() const { return B * H; }
  int64_t state_size() const { return f * dv; }
  int64_t chunks() const { return (T + kChunk - 1) / kChunk; }
  /// On the GPU: with correction all tokens are one, since it mixes the rows of states.
  RecurrenceChunks gpu_chunks(bool corrects) const {
    return corrects ? RecurrenceChunks::one(T) : RecurrenceChunks::cut(heads(), T, f, dv);
  }
  int64_t gpu_decays_size(bool corrects) const {
    return decay == Decay::none ? 0 : gpu_chunks(corrects).borders(heads()) * f;
  }
  int64_t states_size(bool corrects, DeviceType device) const {
    return state_size() * (device == DeviceType::cuda ? gpu_chunks(corrects).borders(heads()) : heads() * chunks());
  }
  int64_t work() const { return heads() * T * f * dv; }
  /// Pieces of the work, each some neighbouring heads with their own scratch memory.
  int64_t pieces(int64_t scratch_size) const {
    return std::min(heads(), std::clamp<int64_t>(kMostScratch / std::max<int64_t>(1, scratch_size), 1, kMostPieces));
  }
};

/// Inputs of both passes. Null pointers for inputs that are not there.
template <class T>
struct DeltaRuleInputs {
  DeltaRuleShape shape;
  const T *q, *k, *v, *log_decay, *beta;
  HeadStrides q_strides, k_strides, v_strides, decay_strides, beta_strides;
  const acc_t<T>* initial;  // [B,H,f,dv] or null
};

template <class T>
struct GatedDeltaRuleFwd : DeltaRuleInputs<T> {
  T* y;
  HeadStrides y_strides;
  /// [B,H,chunks,f,dv] before each chunk, or null. On the GPU [B,H,chunks - 1,f,dv] between its chunks, never null.
  acc_t<T>* states;
  acc_t<T>* final;      // [B,H,f,dv] or null
  acc_t<T>* workspace;  // [workspace_size()]

  /// Of a piece: the state, and the residual and decays of a token.
  int64_t scratch_size() const { return this->shape.state_size() + this->shape.dv + this->shape.f; }
  /// On the GPU the decays of chunks.
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? this->shape.gpu_decays_size(this->beta != nullptr)
                                      : this->shape.pieces(scratch_size()) * scratch_size();
  }
};

template <class T>
struct GatedDeltaRuleBwd : DeltaRuleInputs<T> {
  const T* dy;
  HeadStrides dy_strides;
  const acc_t<T>* states;  // of the forward pass
  const acc_t<T>* dfinal;  // [B,H,f,dv] or null
  T *dq, *dk, *dv;
  HeadStrides dq_strides, dk_strides, dv_strides;
  T* dlog_decay;        // [B,H,T] or [B,H,T,f], contiguous; or null
  T* dbeta;             // [B,H,T], contiguous; or null
  acc_t<T>* dinitial;   // [B,H,f,dv] or null
  acc_t<T>* workspace;  // [workspace_size()]

  /// Of a piece: the gradient of the state; of a chunk the states, and the residuals and decays of its tokens.
  int64_t scratch_size() const {
    const DeltaRuleShape& s = this->shape;
    return s.state_size() * (DeltaRuleShape::kChunk + 2) + (s.dv + s.f) * DeltaRuleShape::kChunk;
  }
  /// On the GPU, of every token of every head: gradients of q, of k as what is read and as what is written, and of the
  /// decay; residuals and their gradients. What the state after the last token adds to that of the decay. And gradients
  /// of the states between chunks, and the decays of chunks.
  int64_t gpu_size() const {
    const DeltaRuleShape& s = this->shape;
    const bool corrects = this->beta != nullptr;
    return s.heads() * (s.T * (3 * s.f + 2 * s.dv + 1) + s.f) + s.states_size(corrects, DeviceType::cuda) +
           s.gpu_decays_size(corrects);
  }
  int64_t workspace_size(DeviceType device) const {
    return device == DeviceType::cuda ? gpu_size() : this->shape.pieces(scratch_size()) * scratch_size();
  }
};

template <class T>
void run(Cpu, const GatedDeltaRuleFwd<T>&);
template <class T>
void run(Cuda, const GatedDeltaRuleFwd<T>&);
template <class T>
void run(Cpu, const GatedDeltaRuleBwd<T>&);
template <class T>
void run(Cuda, const GatedDeltaRuleBwd<T>&);

}  // namespace kernels
}  // namespace margay
