#include "tests/tasks/hf/folders.h"

#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "engine/rng.h"

namespace margay::test {
namespace {

constexpr int64_t kWidth = 8, kLayers = 2, kVocabulary = 11;

void add_linear(HfTensors& tensors, const std::string& name, const std::string& dtype, int64_t out, int64_t in) {
  tensors.push_back(stored(name + ".weight", dtype, {out, in}));
  tensors.push_back(stored(name + ".bias", dtype, {out}));
}

void add_norm(HfTensors& tensors, const std::string& name, const std::string& dtype) {
  tensors.push_back(stored(name + ".weight", dtype, {kWidth}));
  tensors.push_back(stored(name + ".bias", dtype, {kWidth}));
}

}  // namespace

HfStored stored(const std::string& name, const std::string& dtype, const Shape& shape) {
  HfStored tensor{name, dtype, shape, {}};
  RandomStream random(1, hash_name(name));
  for (int64_t i = 0; i < shape.numel(); ++i) {
    // Sign and fraction from anywhere, an exponent near that of 1.
    const uint32_t bits = random.below(1u << 31) ^ (random.below(2) << 31);
    if (dtype == "F32") {
      const uint32_t value = (bits & 0x807fffffu) | (124 + random.below(3)) << 23;
      for (int byte = 0; byte < 4; ++byte) tensor.bytes.push_back(static_cast<uint8_t>(value >> 8 * byte));
    } else {
      const uint32_t value = dtype == "F16" ? (bits & 0x83ffu) | (12 + random.below(3)) << 10
                                            : (bits >> 16 & 0x807fu) | (124 + random.below(3)) << 7;
      tensor.bytes.push_back(static_cast<uint8_t>(value));
      tensor.bytes.push_back(static_cast<uint8_t>(value >> 8));
    }
  }
  return tensor;
}

HfTensors neox_tensors(const std::string& dtype) {
  HfTensors tensors{stored("gpt_neox.embed_in.weight", dtype, {kVocabulary, kWidth})};
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = "gpt_neox.layers." + std::to_string(i);
    add_norm(tensors, layer + ".input_layernorm", dtype);
    add_norm(tensors, layer + ".post_attention_layernorm", dtype);
    add_linear(tensors, layer + ".attention.query_key_value", dtype, 3 * kWidth, kWidth);
    add_linear(tensors, layer + ".attention.dense", dtype, kWidth, kWidth);
    add_linear(tensors, layer + ".mlp.dense_h_to_4h", dtype, 20, kWidth);
    add_linear(tensors, layer + ".mlp.dense_4h_to_h", dtype, kWidth, 20);
  }
  add_norm(tensors, "gpt_neox.final_layer_norm", dtype);
  tensors.push_back(stored("embed_out.weight", dtype, {kVocabulary, kWidth}));
  return tensors;
}

HfTensors mamba_tensors(const std::string& dtype) {
  const int64_t inner = 16, states = 5, rank = 1;
  HfTensors tensors{stored("backbone.embeddings.weight", dtype, {kVocabulary, kWidth})};
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = "backbone.layers." + std::to_string(i), mixer = layer + ".mixer.";
    tensors.push_back(stored(layer + ".norm.weight", dtype, {kWidth}));
    tensors.push_back(stored(mixer + "in_proj.weight", dtype, {2 * inner, kWidth}));
    tensors.push_back(stored(mixer + "conv1d.weight", dtype, {inner, 1, 4}));
    tensors.push_back(stored(mixer + "conv1d.bias", dtype, {inner}));
    tensors.push_back(stored(mixer + "x_proj.weight", dtype, {rank + 2 * states, inner}));
    add_linear(tensors, mixer + "dt_proj", dtype, inner, rank);
    tensors.push_back(stored(mixer + "A_log", "F32", {inner, states}));  // some keep these in f32
    tensors.push_back(stored(mixer + "D", "F32", {inner}));
    tensors.push_back(stored(mixer + "out_proj.weight", dtype, {kWidth, inner}));
  }
  tensors.push_back(stored("backbone.norm_f.weight", dtype, {kWidth}));
  return tensors;
}

HfTensors mamba2_tensors(const std::string& dtype) {
  const int64_t inner = 16, states = 5, heads = 4, filtered = inner + 2 * states;
  HfTensors tensors{stored("backbone.embeddings.weight", dtype, {kVocabulary, kWidth})};
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = "backbone.layers." + std::to_string(i), mixer = layer + ".mixer.";
    tensors.push_back(stored(layer + ".norm.weight", dtype, {kWidth}));
    tensors.push_back(stored(mixer + "in_proj.weight", dtype, {inner + filtered + heads, kWidth}));
    tensors.push_back(stored(mixer + "conv1d.weight", dtype, {filtered, 1, 4}));
    tensors.push_back(stored(mixer + "conv1d.bias", dtype, {filtered}));
    for (const char* name : {"dt_bias", "A_log", "D"}) tensors.push_back(stored(mixer + name, dtype, {heads}));
    tensors.push_back(stored(mixer + "norm.weight", dtype, {inner}));
    tensors.push_back(stored(mixer + "out_proj.weight", dtype, {kWidth, inner}));
  }
  tensors.push_back(stored("backbone.norm_f.weight", dtype, {kWidth}));
  tensors.push_back(stored("lm_head.weight", dtype, {kVocabulary, kWidth}));
  return tensors;
}

std::string neox_json() {
  return R"({"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 11, "hidden_size": 8,
 "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 32,
 "rotary_pct": 0.5, "rotary_emb_base": 1000, "hidden_act": "gelu", "hidden_dropout": 0.1, "attention_dropout": 0.2,
 "layer_norm_eps": 1e-05, "use_parallel_residual": true, "tie_word_embeddings": false, "bos_token_id": null})";
}

std::string mamba_json() {
  return R"({"architectures": ["MambaForCausalLM"], "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2,
 "state_size": 5, "expand": 2, "conv_kernel": 4, "intermediate_size": 16, "time_step_rank": 1, "use_bias": false,
 "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-05, "rescale_prenorm_residual": true})";
}

std::string mamba2_json() {
  return R"({"architectures": ["Mamba2ForCausalLM"], "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2,
 "state_size": 5, "expand": 2, "conv_kernel": 4, "head_dim": 4, "num_heads": 4, "n_groups": 1, "chunk_size": 3,
 "time_step_rank": "auto", "time_step_limit": [0.0, Infinity], "tie_word_embeddings": false})";
}

void write_tensors(const std::string& path, const HfTensors& tensors) {
  std::vector<RawTensor> raw;
  for (const HfStored& tensor : tensors) raw.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.bytes});
  save_raw_safetensors(path, raw, {{"format", "pt"}});
}

std::string make_folder(const TempDir& dir, const std::string& name, std::string_view json, const HfTensors& tensors) {
  std::filesystem::create_directories(dir.file(name));
  dir.write(name + "/config.json", json);
  write_tensors(dir.file(name + "/model.safetensors"), tensors);
  return dir.file(name);
}

std::string with(std::string text, std::string_view old_part, std::string_view new_part) {
  const size_t at = text.find(old_part);
  if (at == std::string::npos || text.find(old_part, at + 1) != std::string::npos)
    throw std::logic_error("not there once: " + std::string(old_part));
  return text.replace(at, old_part.size(), new_part);
}

}  // namespace margay::test
