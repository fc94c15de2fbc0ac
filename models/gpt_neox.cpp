#include "models/gpt_neox.h"

#include "models/block_stack.h"
#include "models/mlp.h"
#include "models/token_embedding.h"
#include "ops/binary.h"
#include "ops/unary.h"

namespace margay {
namespace {

class Block {
 public:
  Block(const ModelConfig& config, int64_t layer, const Scope& scope)
      : norm1_(scope / "input_layernorm", config.d_model),
        norm2_(scope / "post_attention_layernorm", config.d_model),
        mixer_(make_mixer(config, layer, scope / "attention")),
        up_(scope / "mlp" / "dense_h_to_4h", config.d_model, mlp_width(config), true, init::small(config.d_model)),
        down_(scope / "mlp" / "dense_4h_to_h", mlp_width(config), config.d_model, true,
              init::wang(config.d_model, config.n_layers)),
        after_mixer_{config.dropout_residual, scope.stream("dropout1")},
        after_mlp_{config.dropout_residual, scope.stream("dropout2")} {}

  void operator()(ResidualStream& stream, const ForwardContext& context, MixerState* state) const {
    stream.mix(*mixer_, stream.add_and_norm(norm1_), context, state);
    const Tensor y = norm2_(stream.r);
    stream.h = add(after_mixer_(stream.h, context.rng), after_mlp_(down_(gelu(up_(y))), context.rng));
  }

  const Mixer& mixer() const { return *mixer_; }

 private:
  LayerNorm norm1_, norm2_;
  std::unique_ptr<Mixer> mixer_;
  Linear up_, down_;
  Dropout after_mixer_, after_mlp_;
};

class GptNeox : public Backbone {
 public:
  GptNeox(const ModelConfig& config, const Scope& root)
      : embed_(config, root / "gpt_neox" / "embed_in", root / "pos_embed", init::small(config.d_model)),
        after_embed_{config.dropout_embed, root.stream("dropout")},
        blocks_(config, root / "gpt_neox" / "layers"),
        final_norm_(root / "gpt_neox" / "final_layer_norm", config.d_model),
        head_((root / "embed_out")
                  .parameter("weight", {config.vocab_size, config.d_model}, init::small(config.d_model))) {}

  Tensor trunk(const Tensor& ids, const ForwardContext& context, ModelState* state) const override {
    const int64_t first = state ? state->position : 0;
    return blocks_({after_embed_(embed_(ids, first), context.rng), {}}, ids.dim(1), context, state);
  }

  Tensor final_norm(const Tensor& h) const override { return final_norm_(h); }
  const Tensor& head() const override { return head_; }

  ModelState start(int64_t batch) const override { return blocks_.start(batch); }

 private:
  TokenEmbedding embed_;
  Dropout after_embed_;
  BlockStack<Block> blocks_;
  LayerNorm final_norm_;
  Tensor head_;
};

}  // namespace

std::unique_ptr<Backbone> make_gpt_neox(const ModelConfig& config, const Scope& scope) {
  return std::make_unique<GptNeox>(config, scope);
}

}  // namespace margay
