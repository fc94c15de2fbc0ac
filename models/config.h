#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "models/config_key.h"

namespace margay {

// Defaults leave a config file free to name only what it changes. Choices in comments stand default first.

/// [model.cat]: short causal filters on queries, keys and values; read by cat, lincat, lcat.
struct CatConfig {
  int64_t conv_width = 3;                  ///< taps of each filter; index 0 = current token
  std::string conv_site = "post";          ///< post: filter the projections | input: filter what enters them
  std::string conv_sharing = "depthwise";  ///< depthwise: one filter a channel | per_head | shared: one for all
  std::string conv_on = "qkv";             ///< which of q, k, v are filtered: any of the letters, or none
  bool conv_bias = false;                  ///< filters have a bias per channel
  std::string conv_init = "uniform";  ///< uniform: U(+-1/sqrt(W)) | identity: 1 at the current token + N(0, 0.02^2)
  std::string qk_norm = "none";       ///< none | l2_input: before projection | l2_head: per head, learned scale
};

/// [model.lincat]: linear attention; read by lincat and linear_attention.
struct LincatConfig {
  std::string feature_map = "elu1";  ///< elu1: elu(x) + 1 | taylor2 | softmax | identity (no normaliser)
};

/// [model.lcat]: landmark attention.
struct LcatConfig {
  int64_t block_size = 16;                  ///< tokens a landmark stands for
  int64_t top_k = 1;                        ///< blocks retrieved by each token; 0 = all
  std::string landmark_sharing = "shared";  ///< pooling filter: shared | per_head
  bool landmark_query = false;              ///< own query projection for landmarks
  bool landmark_key = false;                ///< own key projection for landmarks
  std::string gate = "grouped";             ///< grouped softmax | additive | none
};

/// [model.mamba]: mamba and mamba2.
struct MambaConfig {
  int64_t expand = 2;     ///< inner width = expand * d_model
  int64_t d_state = 16;   ///< states per channel (mamba) or head (mamba2)
  int64_t d_conv = 4;     ///< taps of the short filter
  int64_t head_dim = 64;  ///< mamba2: channels of a head
  int64_t chunk = 256;    ///< mamba2: tokens of a chunk
};

/// [model.s4d]
struct S4dConfig {
  int64_t d_state = 64;                ///< states per channel: d_state / 2 conjugate pairs
  std::string init = "lin";            ///< imaginary parts of A: lin | inv | real
  std::string discretization = "zoh";  ///< zoh: zero-order hold | bilinear
};

/// [model.hyena]
struct HyenaConfig {
  int64_t filter_width = 64;  ///< hidden width of the network that makes the filter
  int64_t filter_embed = 3;   ///< features of a position
};

/// [model.h3]
struct H3Config {
  int64_t d_state = 64;  ///< states of the shift and of the diagonal SSM
  int64_t head_dim = 2;  ///< channels of a head
};

/// [model.base_conv]
struct BaseConvConfig {
  std::vector<int64_t> kernel_size = {3, -1};  ///< by layer, cycled; -1 = implicit filter as long as the sequence
};

/// [model.based]
struct BasedConfig {
  int64_t feature_dim = 8;  ///< query and key features of a head before the Taylor map
};

/// [model.attention]
struct AttentionConfig {
  int64_t window = 0;  ///< w > 0: token t sees keys t - w ... t; 0 = all before
};

/// [model]: everything that fixes the function a model computes.
struct ModelConfig {
  std::string backbone = "zoology";          ///< zoology | gpt_neox
  std::vector<std::string> mixer = {"cat"};  ///< names of the mixer registry, cycled over the layers
  int64_t d_model = 64;                      ///< width of the residual stream
  int64_t n_layers = 1;
  int64_t n_heads = 1;            ///< divides d_model
  int64_t vocab_size = 8192;      ///< token ids are 0 ... vocab_size - 1
  int64_t max_seq_len = 64;       ///< rows of learned positions, taps of length-bound filters, YaRN's training length
  std::string position = "none";  ///< none | learned | rope
  double rope_fraction = 1.0;     ///< rotated share of each head
  double rope_base = 10000.0;     ///< wavelength base of the rotations
  double yarn_scale = 1.0;        ///< context extension factor; 1 = off
  std::string mlp = "none";       ///< none | identity (zoology's residual of the norm) | gelu | swiglu
  double mlp_ratio = 4.0;         ///< hidden width of the MLP / d_model
  bool tie_embeddings = true;     ///< the head uses the embedding matrix (zoology)
  std::string final_norm = "layer_norm";  ///< before the head (zoology): layer_norm | rms_norm
  double dropout_embed = 0.0;             ///< shares of elements dropped in training
  double dropout_residual = 0.0;
  double dropout_attention = 0.0;
  CatConfig cat;
  LincatConfig lincat;
  LcatConfig lcat;
  MambaConfig mamba;
  S4dConfig s4d;
  HyenaConfig hyena;
  H3Config h3;
  BaseConvConfig base_conv;
  BasedConfig based;
  AttentionConfig attention;

  /// The mixer of layer 0 ... n_layers - 1.
  const std::string& mixer_of(int64_t layer) const { return mixer[static_cast<size_t>(layer) % mixer.size()]; }
};

/// All keys of [model], tables in the order of their fields; valid while `config` lives.
std::vector<ConfigKey> keys_of(ModelConfig& config);

/// Throws ConfigError unless every key is in its range, the mixers are known and the sizes fit each other. What one
/// mixer alone needs (such as the divisors of its state) is checked where that mixer is made.
void validate(const ModelConfig& config);

}  // namespace margay
