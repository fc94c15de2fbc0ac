#include "models/zoology.h"

#include <fmt/format.h>

#include <optional>
#include <variant>

#include "engine/error.h"
#include "models/attention_core.h"
#include "models/mlp.h"
#include "ops/binary.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/view.h"

namespace margay {
namespace {

// The residual stream r, and a branch h that is not yet added to it.
struct Stream {
  Tensor r, h;

  // Adds the branch, and returns the norm of the sum: one pass over memory.
  Tensor add_and_norm(const LayerNorm& norm) {
    if (!h.defined()) return norm(r);
    Tensors sum_and_norm = add_layer_norm(h, r, norm.weight, norm.bias);
    r = sum_and_norm[0];
    h = {};
    return sum_and_norm[1];
  }
  Tensor add_and_norm(const RmsNorm& norm) {
    if (h.defined()) r = add(r, h);
    h = {};
    return norm(r);
  }
};

using Norm = std::variant<LayerNorm, RmsNorm>;

// Blocks of Mamba have an RMSNorm, and no MLP whatever the config says.
bool is_mamba(const std::string& mixer) { return mixer == "mamba" || mixer == "mamba2"; }

Norm make_norm(bool rms, const Scope& scope, int64_t width) {
  if (rms) return RmsNorm(scope, width);
  return LayerNorm(scope, width);
}

class Block {
 public:
  Block(const ModelConfig& config, int64_t layer, const Scope& scope)
      : norm1_(make_norm(is_mamba(config.mixer_of(layer)), scope / "norm1", config.d_model)),
        mixer_(make_mixer(config, layer, scope / "mixer")),
        before_{layer == 0 ? config.dropout_embed : config.dropout_residual, scope.stream("dropout1")},
        between_{config.dropout_residual, scope.stream("dropout2")} {
    if (is_mamba(config.mixer_of(layer))) return;
    if (config.mlp != "none") norm2_.emplace(scope / "norm2", config.d_model);
    if (config.mlp == "gelu" || config.mlp == "swiglu") mlp_.emplace(scope / "mlp", config);
  }

  void operator()(Stream& stream, const ForwardContext& context, MixerState* state) const {
    if (!stream.r.defined()) {
      stream = {before_(stream.h, context.rng), {}};
    } else if (stream.h.defined()) {
      stream.h = before_(stream.h, context.rng);
    }
    const Tensor x = std::visit([&](const auto& norm) { return stream.add_and_norm(norm); }, norm1_);
    stream.h = between_(mixer_->forward(x, context, state), context.rng);
    if (!norm2_) return;
    const Tensor y = stream.add_and_norm(*norm2_);
    stream.h = mlp_ ? (*mlp_)(y) : y;
  }

  const Mixer& mixer() const { return *mixer_; }

 private:
  Norm norm1_;
  std::unique_ptr<Mixer> mixer_;
  Dropout before_, between_;
  std::optional<LayerNorm> norm2_;
  std::optional<Mlp> mlp_;
};

class Zoology : public Backbone {
 public:
  Zoology(const ModelConfig& config, const Scope& scope)
      : max_seq_len_(config.max_seq_len),
        embed_((scope / "embed").parameter("weight", {config.vocab_size, config.d_model}, init::normal(0.02))) {
    if (config.position == "learned")
      positions_ = (scope / "pos_embed").parameter("weight", {config.max_seq_len, config.d_model}, init::normal(0.02));
    for (int64_t i = 0; i < config.n_layers; ++i) blocks_.emplace_back(config, i, scope / "blocks" / i);
    final_norm_.emplace(scope / "final_norm", config.d_model);
    if (!config.tie_embeddings)
      head_ = (scope / "head").parameter("weight", {config.vocab_size, config.d_model}, init::normal(0.02));
  }

  Tensor trunk(const Tensor& ids, const ForwardContext& context, ModelState* state) const override {
    const int64_t first = state ? state->position : 0, end = first + ids.dim(1);
    Stream stream{{}, embedding(embed_, ids)};
    if (positions_.defined()) {
      if (end > max_seq_len_)
        throw ConfigError(
            fmt::format("sequences must have at most model.max_seq_len = {} tokens with learned positions, "
                        "got {}",
                        max_seq_len_, end));
      stream.h = add(stream.h, slice(positions_, 0, first, end));
    }
    for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i](stream, context, state ? state->layers[i].get() : nullptr);
    if (state) state->position = end;
    return stream.h.defined() ? add(stream.r, stream.h) : stream.r;
  }

  Tensor final_norm(const Tensor& h) const override { return (*final_norm_)(h); }
  const Tensor& head() const override { return head_.defined() ? head_ : embed_; }

  ModelState start(int64_t batch) const override {
    ModelState state;
    for (const Block& block : blocks_) state.layers.push_back(block.mixer().start(batch));
    return state;
  }

 private:
  int64_t max_seq_len_;
  Tensor embed_, positions_, head_;
  std::vector<Block> blocks_;
  std::optional<LayerNorm> final_norm_;
};

}  // namespace

std::unique_ptr<Backbone> make_zoology(const ModelConfig& config, const Scope& scope) {
  return std::make_unique<Zoology>(config, scope);
}

}  // namespace margay
