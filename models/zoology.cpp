#include "models/zoology.h"

#include <optional>
#include <variant>

#include "models/block_stack.h"
#include "models/mlp.h"
#include "models/token_embedding.h"

namespace margay {
namespace {

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

  void operator()(ResidualStream& stream, const ForwardContext& context, MixerState* state) const {
    if (!stream.r.defined()) {
      stream = {before_(stream.h, context.rng), {}};
    } else if (stream.h.defined()) {
      stream.h = before_(stream.h, context.rng);
    }
    const Tensor x = std::visit([&](const auto& norm) { return stream.add_and_norm(norm); }, norm1_);
    stream.mix(*mixer_, x, context, state);
    stream.h = between_(stream.h, context.rng);
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
      : embed_(config, scope / "embed", scope / "pos_embed", init::normal(0.02)),
        blocks_(config, scope / "blocks"),
        final_norm_(make_norm(config.final_norm == "rms_norm", scope / "final_norm", config.d_model)),
        head_(config.tie_embeddings
                  ? embed_.weight()
                  : (scope / "head").parameter("weight", {config.vocab_size, config.d_model}, init::normal(0.02))) {}

  Tensor trunk(const Tensor& ids, const ForwardContext& context, ModelState* state) const override {
    const int64_t first = state ? state->position : 0;
    return blocks_({{}, embed_(ids, first)}, ids.dim(1), context, state);
  }

  Tensor final_norm(const Tensor& h) const override {
    return std::visit([&](const auto& norm) { return norm(h); }, final_norm_);
  }
  const Tensor& head() const override { return head_; }

  ModelState start(int64_t batch) const override { return blocks_.start(batch); }

 private:
  TokenEmbedding embed_;
  BlockStack<Block> blocks_;
  Norm final_norm_;
  Tensor head_;
};

}  // namespace

std::unique_ptr<Backbone> make_zoology(const ModelConfig& config, const Scope& scope) {
  return std::make_unique<Zoology>(config, scope);
}

}  // namespace margay
