// Checkpoints from and to handmade Hugging Face folders: every bit comes back, and what does not fit is refused.

#include "tasks/hf/convert.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/error.h"
#include "tasks/train/model_file.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/models/reference_model.h"
#include "tests/models/small_model.h"
#include "tests/support/compare.h"
#include "tests/tasks/hf/folders.h"

namespace margay::test {
namespace {

struct Kind {
  std::string name, json;
  HfTensors (*tensors)(const std::string& dtype);
};
std::vector<Kind> kinds() {
  return {{"neox", neox_json(), neox_tensors},
          {"mamba", mamba_json(), mamba_tensors},
          {"mamba2", mamba2_json(), mamba2_tensors}};
}

void check_same(const std::string& path, const HfTensors& tensors) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.names().size() == tensors.size());
  for (const HfStored& tensor : tensors) {
    CAPTURE(tensor.name);
    REQUIRE(file.contains(tensor.name));
    CHECK(file.info(tensor.name).dtype_name == tensor.dtype);
    CHECK(file.info(tensor.name).shape == tensor.shape);
    const auto bytes = file.bytes(tensor.name);
    CHECK(std::equal(bytes.begin(), bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
  }
}

LanguageModel load(const std::string& checkpoint) {
  return load_model(checkpoint, load_checkpoint_config(checkpoint).model);
}

Tensor logits_of(const LanguageModel& model) {
  const NoGrad no_grad;
  return model.logits(from_values(some_ids(19, model.config().vocab_size, 3), {1, 19}));
}

std::string import_error(const TempDir& dir, const std::string& json, const HfTensors& tensors) {
  return data_error([&] { import_hf(make_folder(dir, "bad", json, tensors), dir.file("out"), 0); });
}

HfTensors without(HfTensors tensors, const std::string& name) {
  std::erase_if(tensors, [&](const HfStored& tensor) { return tensor.name == name; });
  return tensors;
}

}  // namespace

TEST_CASE("hf: import then export gives the same tensors bit for bit, in every dtype") {
  const TempDir dir;
  for (const Kind& kind : kinds()) {
    for (const char* dtype : {"F32", "F16", "BF16"}) {
      CAPTURE(kind.name);
      CAPTURE(dtype);
      const HfTensors tensors = kind.tensors(dtype);
      const std::string folder = make_folder(dir, kind.name + dtype, kind.json, tensors);
      import_hf(folder, dir.file("checkpoint"), 0);
      export_hf(dir.file("checkpoint"), dir.file("out"));
      check_same(dir.file("out/model.safetensors"), tensors);
      CHECK(SafetensorsFile::open(dir.file("out/model.safetensors")).metadata().at("format") == "pt");
      // The exported config.json describes the same model.
      import_hf(dir.file("out"), dir.file("again"), 0);
      CHECK(to_toml(load_checkpoint_config(dir.file("again"))) ==
            to_toml(load_checkpoint_config(dir.file("checkpoint"))));
      CHECK(same_bits(logits_of(load(dir.file("again"))), logits_of(load(dir.file("checkpoint")))));
    }
  }
}

TEST_CASE("hf: imported parameters have their values, filters with the current token first") {
  const TempDir dir;
  for (const Kind& kind : kinds()) {
    CAPTURE(kind.name);
    const HfTensors tensors = kind.tensors("BF16");
    import_hf(make_folder(dir, kind.name, kind.json, tensors), dir.file("checkpoint"), 0);
    const LanguageModel model = load(dir.file("checkpoint"));
    const SafetensorsFile source = SafetensorsFile::open(dir.file(kind.name + "/model.safetensors"));
    int64_t elements = 0;
    for (const HfStored& tensor : tensors) elements += tensor.shape.numel();
    CHECK(model.parameter_count() == elements);
    for (const Parameter& p : model.parameters()) {
      std::string name = p.name;
      if (kind.name != "neox") {
        const std::vector<std::pair<std::string, std::string>> renamed{{"embed.weight", "backbone.embeddings.weight"},
                                                                       {"head.weight", "lm_head.weight"},
                                                                       {"final_norm.weight", "backbone.norm_f.weight"}};
        for (const auto& [ours, theirs] : renamed)
          if (name == ours) name = theirs;
        if (name.starts_with("blocks.")) name = "backbone.layers." + name.substr(7);
        if (name.ends_with(".norm1.weight")) name = name.substr(0, name.size() - 12) + "norm.weight";
      }
      CAPTURE(name);
      const auto expected = source.load(name).to(DType::f32).to_vector<float>();
      const auto got = p.value.detach().to_vector<float>();
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        const bool reversed = name.ends_with("conv1d.weight");
        CHECK(got[i] == expected[reversed ? i / 4 * 4 + 3 - i % 4 : i]);
      }
    }
    // The function is the one that the equations give.
    const ReferenceModel reference(model.config(), ReferenceModel::values_of(model.parameters()));
    std::vector<double> expected;
    for (const auto& row : reference.logits(some_ids(19, 11, 3)))
      expected.insert(expected.end(), row.begin(), row.end());
    CHECK(difference_relative_to_max(logits_of(model), from_values(expected, {1, 19, 11}), 1e-4) == "");
  }
}

TEST_CASE("hf: config.json becomes [model]") {
  const TempDir dir;
  import_hf(make_folder(dir, "neox", neox_json(), neox_tensors()), dir.file("checkpoint"), 0);
  const ModelConfig neox = load_checkpoint_config(dir.file("checkpoint")).model;
  CHECK(neox.backbone == "gpt_neox");
  CHECK(neox.mixer == std::vector<std::string>{"attention"});
  CHECK(neox.n_heads == 2);
  CHECK(neox.max_seq_len == 32);
  CHECK(neox.position == "rope");
  CHECK(neox.rope_fraction == 0.5);
  CHECK(neox.rope_base == 1000);
  CHECK(neox.mlp_ratio == 2.5);
  CHECK(neox.dropout_residual == 0.1);
  CHECK(neox.dropout_attention == 0.2);
  import_hf(make_folder(dir, "mamba2", mamba2_json(), mamba2_tensors()), dir.file("checkpoint2"), 0);
  const ModelConfig mamba2 = load_checkpoint_config(dir.file("checkpoint2")).model;
  CHECK(mamba2.final_norm == "rms_norm");
  CHECK_FALSE(mamba2.tie_embeddings);
  CHECK(mamba2.mamba.chunk == 3);
  CHECK(mamba2.mamba.d_state == 5);
  CHECK(mamba2.mamba.head_dim == 4);
}

TEST_CASE("hf: filters that pass the current token leave the logits as they were") {
  const TempDir dir;
  for (const int64_t width : {1, 21}) {
    const std::string folder = make_folder(dir, "neox", neox_json(), neox_tensors("F16"));
    import_hf(folder, dir.file("plain"), 0);
    import_hf(folder, dir.file("cat"), width);
    const LanguageModel plain = load(dir.file("plain")), cat = load(dir.file("cat"));
    CHECK(cat.config().mixer == std::vector<std::string>{"cat"});
    CHECK(cat.config().cat.conv_width == width);
    CHECK(cat.parameter_count() == plain.parameter_count() + 2 * 3 * 8 * width);
    CHECK(same_bits(logits_of(cat), logits_of(plain)));
  }
  CHECK_THROWS_WITH_AS(import_hf(make_folder(dir, "mamba", mamba_json(), mamba_tensors()), dir.file("out"), 21),
                       "filters can be added to a GPTNeoXForCausalLM, got MambaForCausalLM", ConfigError);
  CHECK_THROWS_AS(import_hf(dir.file("neox"), dir.file("out"), int64_t{1} << 40), ConfigError);
  CHECK_THROWS_WITH_AS(export_hf(dir.file("cat"), dir.file("out")),
                       "model.mixer must be \"attention\" to be a GPTNeoXForCausalLM, got \"cat\"", ConfigError);
}

TEST_CASE("hf: buffers, other names of the head, and a tied head that is stored too") {
  const TempDir dir;
  HfTensors tensors = neox_tensors();
  const HfTensors weights = tensors;
  for (const char* name : {"bias", "masked_bias", "rotary_emb.inv_freq"})
    tensors.push_back(stored(std::string("gpt_neox.layers.1.attention.") + name, "F32", {1, 3}));
  import_hf(make_folder(dir, "buffers", neox_json(), tensors), dir.file("checkpoint"), 0);
  export_hf(dir.file("checkpoint"), dir.file("out"));
  check_same(dir.file("out/model.safetensors"), weights);

  tensors = weights;
  tensors.back().name = "lm_head.weight";
  import_hf(make_folder(dir, "renamed", neox_json(), tensors), dir.file("renamed-checkpoint"), 0);
  export_hf(dir.file("renamed-checkpoint"), dir.file("renamed-out"));
  check_same(dir.file("renamed-out/model.safetensors"), weights);

  tensors = mamba_tensors();
  tensors.front().name = "backbone.embedding.weight";
  HfStored head = tensors.front();
  head.name = "lm_head.weight";
  tensors.push_back(head);
  import_hf(make_folder(dir, "tied", mamba_json(), tensors), dir.file("tied-checkpoint"), 0);
  CHECK(load(dir.file("tied-checkpoint")).config().tie_embeddings);
  tensors.back().bytes[5] ^= 1;
  CHECK(import_error(dir, mamba_json(), tensors).find("differs from the embedding") != std::string::npos);
}

TEST_CASE("hf: NoPE and untied models, and rotations whose share is rounded") {
  const TempDir dir;
  for (const auto& [position, fraction] : {std::pair<const char*, double>{"none", 1.0}, {"rope", 0.3}, {"rope", 1.0}}) {
    Config config;
    config.model = small_config();
    config.model.backbone = "gpt_neox";
    config.model.mixer = {"attention"};
    config.model.position = position;
    config.model.rope_fraction = fraction;
    config.model.mlp_ratio = 1.3;
    const LanguageModel model(config.model, 3);
    save_model(dir.file("checkpoint"), config, model);
    export_hf(dir.file("checkpoint"), dir.file("out"));
    import_hf(dir.file("out"), dir.file("again"), 0);
    CHECK(same_bits(logits_of(load(dir.file("again"))), logits_of(model)));
  }
}

TEST_CASE("hf: tensors that do not fit are refused by name") {
  const TempDir dir;
  const std::string qkv = "gpt_neox.layers.1.attention.query_key_value.weight";
  CHECK(
      import_error(dir, neox_json(), without(neox_tensors(), qkv)).find("has no tensor \"" + qkv + "\"; the nearest") !=
      std::string::npos);
  const auto changed = [&](const std::string& dtype, const Shape& shape) {
    HfTensors tensors = without(neox_tensors(), qkv);
    tensors.push_back(stored(qkv, dtype, shape));
    return import_error(dir, neox_json(), tensors);
  };
  CHECK(changed("F32", {8, 24}).find("tensor \"" + qkv + "\" must be F32, F16 or BF16 [24,8], got F32[8,24]") !=
        std::string::npos);
  HfTensors tensors = neox_tensors();
  tensors.push_back({"gpt_neox.layers.2.attention.dense.bias", "F32", {8}, std::vector<uint8_t>(32)});
  CHECK(import_error(dir, neox_json(), tensors)
            .find("\"gpt_neox.layers.2.attention.dense.bias\" is not one of a "
                  "GPTNeoXForCausalLM; the nearest is") != std::string::npos);
  tensors = neox_tensors();
  tensors.back() = {"embed_out.weight", "F64", {11, 8}, std::vector<uint8_t>(11 * 64)};
  CHECK(import_error(dir, neox_json(), tensors).find("must be F32, F16 or BF16 [11,8], got F64[11,8]") !=
        std::string::npos);
  // Sizes that no memory would hold are compared before anything is made.
  for (const auto& [old_part, new_part] : std::vector<std::pair<std::string, std::string>>{
           {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000"},
           {"\"vocab_size\": 11", "\"vocab_size\": 2147483647"},
           {"\"hidden_size\": 8", "\"hidden_size\": 1048576"},
           {"\"intermediate_size\": 20", "\"intermediate_size\": 1048576"}})
    CHECK(import_error(dir, with(neox_json(), old_part, new_part), neox_tensors()) != "nothing was thrown");
  CHECK_FALSE(std::filesystem::exists(dir.file("out")));
}

TEST_CASE("hf: what transformers does not have is not exported") {
  const TempDir dir;
  const auto refusal = [&](const auto& change) {
    Config config;
    config.model = small_config();
    change(config.model);
    save_model(dir.file("checkpoint"), config, LanguageModel(config.model, 3));
    try {
      export_hf(dir.file("checkpoint"), dir.file("out"));
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto neox = [](ModelConfig& c) { c.backbone = "gpt_neox", c.mixer = {"attention"}; };
  CHECK(refusal([&](ModelConfig& c) { neox(c), c.position = "learned"; }) ==
        "model.position must be \"rope\" or \"none\" to be a GPTNeoXForCausalLM, got \"learned\"");
  CHECK(refusal([&](ModelConfig& c) { neox(c), c.yarn_scale = 2; }).find("model.yarn_scale") == 0);
  CHECK(refusal([&](ModelConfig& c) { neox(c), c.attention.window = 2; }).find("model.attention.window") == 0);
  CHECK(refusal([&](ModelConfig& c) { c.mixer = {"mamba"}; }) ==
        "model.final_norm must be \"rms_norm\" to be a MambaForCausalLM, got \"layer_norm\"");
  CHECK(refusal([&](ModelConfig& c) { c.mixer = {"mamba", "attention"}, c.n_layers = 2; }).find("only backbone") == 0);
  CHECK(refusal([&](ModelConfig&) {}).find("got \"zoology\" with \"cat\"") != std::string::npos);
  CHECK(refusal([&](ModelConfig& c) { neox(c); }) == "");
}

TEST_CASE("hf: folders that would be overwritten are left alone") {
  const TempDir dir;
  const std::string folder = make_folder(dir, "neox", neox_json(), neox_tensors());
  CHECK_THROWS_AS(import_hf(folder, folder, 0), ConfigError);
  import_hf(folder, dir.file("checkpoint"), 0);
  CHECK_THROWS_AS(export_hf(dir.file("checkpoint"), dir.file("checkpoint")), ConfigError);
  dir.write("checkpoint/state.json", "{}");
  CHECK_THROWS_AS(import_hf(folder, dir.file("checkpoint"), 0), ConfigError);
}

TEST_CASE("hf: damaged checkpoints are not exported") {
  const TempDir dir;
  import_hf(make_folder(dir, "neox", neox_json(), neox_tensors()), dir.file("checkpoint"), 0);
  const auto export_error = [&](const HfTensors& tensors) {
    write_tensors(dir.file("checkpoint/model.safetensors"), tensors);
    return data_error([&] { export_hf(dir.file("checkpoint"), dir.file("out")); });
  };
  CHECK(export_error(without(neox_tensors(), "embed_out.weight")).find("has no tensor") != std::string::npos);
  HfTensors tensors = neox_tensors();
  tensors.push_back(stored("more", "F32", {1}));
  CHECK(export_error(tensors).find("\"more\" is not one of") != std::string::npos);
  tensors.pop_back();
  tensors.back() = stored("embed_out.weight", "F32", {11, 9});
  CHECK(export_error(tensors).find("[11,8], got F32[11,9]") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(dir.file("out")));
}

}  // namespace margay::test
