#include "models/lcat.h"

#include <cmath>
#include <optional>

#include "models/cat_front.h"
#include "ops/binary.h"
#include "ops/landmark_attention.h"
#include "ops/landmark_choice.h"
#include "ops/landmark_pool.h"
#include "ops/pad.h"
#include "ops/view.h"

namespace margay {
namespace {

LandmarkGate gate_of(const std::string& name) {
  if (name == "additive") return LandmarkGate::additive;
  return name == "none" ? LandmarkGate::none : LandmarkGate::grouped;
}

struct LcatState : MixerState {
  CatFrontState front;
  KvCache cache;
  RowCache landmarks;  // of the complete blocks
};

class Lcat : public Mixer {
 public:
  Lcat(const ModelConfig& config, const Scope& scope)
      : options_(config.lcat),
        heads_(config.n_heads),
        front_(config, scope),
        rope_(config),
        scores_(config, scope, front_.beta()),
        scale_(scope.parameter("landmark_scale", {heads_}, init::ones(), false)),
        bias_(scope.parameter("landmark_bias", {heads_}, init::zeros(), false)),
        out_(scope / "out_proj", config.d_model, config.d_model, true, residual_projection_init(config)) {
    const int64_t width = options_.block_size, d = config.d_model;
    const bool shared = options_.landmark_sharing == "shared";
    filter_ = (scope / "landmark_conv")
                  .parameter("weight", shared ? Shape{width} : Shape{heads_, width},
                             init::constant(1 / std::sqrt(static_cast<double>(width))));
    if (options_.landmark_query) query_.emplace(scope / "landmark_q", d, d, false, projection_init());
    if (options_.landmark_key) key_.emplace(scope / "landmark_k", d, d, false, projection_init());
  }

  Tensor forward(const Tensor& x, const ForwardContext& context, MixerState* state) const override {
    auto* const lcat = static_cast<LcatState*>(state);
    const Qkv qkv = front_(x, lcat ? &lcat->front : nullptr);
    const int64_t position = lcat ? lcat->cache.length() : 0;
    LandmarkAttentionInputs in;
    in.q = rope_(qkv.q, position);
    in.k = rope_(qkv.k, position);
    in.v = qkv.v;
    if (lcat) {
      lcat->cache.append(in.k, in.v);
      const int64_t width = options_.block_size, done = lcat->landmarks.length() * width;
      in.landmarks = lcat->landmarks.append(landmarks(slice(in.k, 2, done, in.k.dim(2) / width * width)));
    } else {
      in.landmarks = landmarks(in.k);
    }
    if (query_) in.landmark_q = project(*query_, in.q);
    in.bias = bias_;
    in.beta = scores_.beta();
    // Where there are no more blocks than a token may choose, all of them.
    if (options_.top_k > 0 && options_.top_k < in.landmarks.dim(2))
      in.blocks = landmark_choice(query_ ? in.landmark_q : in.q, in.landmarks, in.k.dim(2), options_.block_size,
                                  options_.top_k);
    return out_(context.read(merge_heads(landmark_attention(in, attention_options(context)))));
  }
  std::unique_ptr<MixerState> start(int64_t) const override { return std::make_unique<LcatState>(); }

 private:
  LandmarkAttentionOptions attention_options(const ForwardContext& context) const {
    const AttentionOptions scores = scores_.options(context);
    return {options_.block_size, gate_of(options_.gate), scores.scale, scores.dropout, scores.rng, scores.stream};
  }

  // A projection of all heads together: [B, H, T, dh] -> [B, H, T, dh].
  Tensor project(const Linear& projection, const Tensor& x) const {
    return split_heads(projection(merge_heads(x)), heads_);
  }

  // Landmarks [B, H, T / block_size, dh] of keys [B, H, T, dh], times the scale of their logits.
  Tensor landmarks(const Tensor& k) const {
    const Tensor factor = mul(scale_, 1 / std::sqrt(static_cast<double>(k.dim(3))));
    return mul(pooled(k), reshape(factor, {heads_, 1, 1}));
  }
  Tensor pooled(const Tensor& k) const {
    if (!key_) return landmark_pool(k, filter_);
    // A filter that all heads share commutes with the projection, and leaves fewer rows to project.
    if (filter_.ndim() == 1) return project(*key_, landmark_pool(k, filter_));
    return landmark_pool(project(*key_, k), filter_);
  }

  LcatConfig options_;
  int64_t heads_;
  CatFront front_;
  Rope rope_;
  SoftmaxScores scores_;
  Tensor filter_, scale_, bias_;
  std::optional<Linear> query_, key_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> make_lcat(const ModelConfig& config, int64_t, const Scope& scope) {
  return std::make_unique<Lcat>(config, scope);
}

LandmarkRecall landmark_recall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& landmark_q,
                               int64_t block_size, double scale) {
  const int64_t missing = block_size > 0 ? (block_size - k.dim(1) % block_size) % block_size : 0;
  const auto as_head = [&](const Tensor& rows) { return unsqueeze(pad(rows, 1, missing, 0), 1); };
  const auto as_query = [](const Tensor& row) { return reshape(row, {row.dim(0), 1, 1, row.dim(1)}); };
  LandmarkAttentionInputs in;
  in.q = as_query(q);
  in.k = as_head(k);
  in.v = as_head(v);
  in.landmarks = landmark_pool(in.k, ones({block_size}, k.dtype(), k.device())).detach();
  in.blocks =
      landmark_choice(landmark_q.defined() ? as_query(landmark_q) : in.q, in.landmarks, in.k.dim(2), block_size, 1);
  const Tensor y = landmark_attention(in, {.block_size = block_size, .gate = LandmarkGate::none, .scale = scale});
  return {reshape(y, q.shape()), reshape(in.blocks, {q.dim(0)})};
}

}  // namespace margay
