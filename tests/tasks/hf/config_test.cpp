// config.json from outside: what it may say, and what is refused by the name of the key.

#include "tasks/hf/config.h"

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "models/mlp.h"
#include "tasks/hf/json_object.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/tasks/hf/folders.h"

namespace margay::test {
namespace {

using Changes = std::vector<std::pair<std::string, std::string>>;

std::string config_error(const TempDir& dir, const std::string& json) {
  const std::string message = data_error([&] { load_hf_config(dir.write("config.json", json)); });
  CHECK(message.find("config.json\": ") != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
  return message.substr(message.find(": ") + 2);
}

ModelConfig read(const TempDir& dir, const std::string& json) {
  return load_hf_config(dir.write("config.json", json)).config;
}

}  // namespace

TEST_CASE("hf config: what the package leaves out has its defaults") {
  const TempDir dir;
  std::string json =
      with(neox_json(), "\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000, \"hidden_act\": \"gelu\", ", "");
  json = with(json, "\"num_attention_heads\": 2", "\"num_attention_heads\": 1");
  const ModelConfig config = read(dir, json);
  CHECK(config.rope_fraction == 0.25);
  CHECK(config.rope_base == 10000);
  CHECK(load_hf_config(dir.file("config.json")).architecture == HfArchitecture::gpt_neox);
  CHECK(
      read(dir, with(mamba_json(), "\"expand\": 2, \"conv_kernel\": 4, \"intermediate_size\": 16,", "")).mamba.d_conv ==
      4);
  CHECK(read(dir, mamba_json()).tie_embeddings);
  CHECK_FALSE(read(dir, with(mamba2_json(), ", \"tie_word_embeddings\": false", "")).tie_embeddings);
  // Without architectures the type of the model decides.
  CHECK(read(dir, with(neox_json(), "\"architectures\": [\"GPTNeoXForCausalLM\"], ", "")).backbone == "gpt_neox");
}

TEST_CASE("hf config: rotations as newer versions write them") {
  const TempDir dir;
  const std::string plain = with(neox_json(), "\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000, ", "");
  const std::string json = with(plain, "\"bos_token_id\": null",
                                R"("rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                   "partial_rotary_factor": 1.0}, "rope_scaling": null)");
  CHECK(read(dir, json).rope_base == 500);
  CHECK(read(dir, json).rope_fraction == 1);
  CHECK(config_error(dir, with(json, "\"default\"", "\"yarn\"")) ==
        "\"rope_parameters.rope_type\" must be \"default\", got \"yarn\"");
  CHECK(config_error(
            dir, with(neox_json(), "\"bos_token_id\": null", R"("rope_scaling": {"type": "linear", "factor": 2.0})")) ==
        "\"rope_scaling.type\" must be \"default\", got \"linear\"");
  CHECK(read(dir, with(neox_json(), "\"rotary_pct\": 0.5", "\"rotary_pct\": 0")).position == "none");
}

TEST_CASE("hf config: any width of the MLP") {
  const TempDir dir;
  for (const int64_t hidden : {1, 7, 20, 29, 32, 1023, 99999, 1046527})
    for (const int64_t width : {2, 6, 10, 14, 98, 1022}) {
      if (hidden >= 1024 * width) continue;  // beyond what model.mlp_ratio takes
      const std::string sizes = "\"intermediate_size\": " + std::to_string(hidden);
      std::string json = with(with(neox_json(), "\"intermediate_size\": 20", sizes), "\"hidden_size\": 8",
                              "\"hidden_size\": " + std::to_string(width));
      json = with(json, "\"rotary_pct\": 0.5", "\"rotary_pct\": 0");
      CHECK(mlp_width(read(dir, json)) == hidden);
    }
}

TEST_CASE("hf config: other functions than those here are refused") {
  const TempDir dir;
  const Changes neox{
      {"\"hidden_act\": \"gelu\"", "\"hidden_act\": \"gelu_new\""},
      {"\"use_parallel_residual\": true", "\"use_parallel_residual\": false"},
      {"\"layer_norm_eps\": 1e-05", "\"layer_norm_eps\": 1e-06"},
      {"\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"},
      {"\"bos_token_id\": null", "\"attention_bias\": false"},
      {"\"num_attention_heads\": 2", "\"num_attention_heads\": 3"},
      {"\"rotary_pct\": 0.5", "\"rotary_pct\": 0.75"},
      {"\"rotary_pct\": 0.5", "\"rotary_pct\": 1.5"},
      {"\"rotary_emb_base\": 1000", "\"rotary_emb_base\": 1"},
      {"\"hidden_size\": 8", "\"hidden_size\": 0"},
      {"\"hidden_size\": 8", "\"hidden_size\": 8.0"},
      {"\"hidden_size\": 8", "\"hidden_size\": \"8\""},
      {"\"hidden_size\": 8", "\"hidden_size\": 18446744073709551615"},
      {"\"hidden_size\": 8", "\"hidden_size\": null"},
      {"\"vocab_size\": 11", "\"vocab_size\": -1"},
      {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1e9"},
      {"\"max_position_embeddings\": 32", "\"max_position_embeddings\": 0"},
      {"\"hidden_dropout\": 0.1", "\"hidden_dropout\": 1"},
      {"\"intermediate_size\": 20", "\"intermediate_sizes\": 20"},
      {"\"GPTNeoXForCausalLM\"", "\"LlamaForCausalLM\""},
      {"[\"GPTNeoXForCausalLM\"]", "\"GPTNeoXForCausalLM\""},
  };
  for (const auto& [old_part, new_part] : neox) {
    CAPTURE(new_part);
    const std::string key = old_part.starts_with("[") || old_part.starts_with("\"GPT") ? "\"architectures\""
                            : new_part.starts_with("\"intermediate_sizes")             ? "\"intermediate_size\""
                                                                           : new_part.substr(0, new_part.find(':'));
    CHECK(config_error(dir, with(neox_json(), old_part, new_part)).find(key + " must be ") == 0);
  }
  const Changes mamba{{"\"use_bias\": false", "\"use_bias\": true"},
                      {"\"use_conv_bias\": true", "\"use_conv_bias\": false"},
                      {"\"time_step_rank\": 1", "\"time_step_rank\": 2"},
                      {"\"intermediate_size\": 16", "\"intermediate_size\": 17"},
                      {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\""},
                      {"\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": 1e-12"}};
  for (const auto& [old_part, new_part] : mamba)
    CHECK(config_error(dir, with(mamba_json(), old_part, new_part))
              .find(new_part.substr(0, new_part.find(':')) + " must be ") == 0);
  const Changes mamba2{{"\"n_groups\": 1", "\"n_groups\": 8"},
                       {"\"head_dim\": 4", "\"head_dim\": 3"},
                       {"\"num_heads\": 4", "\"num_heads\": 8"},
                       {"\"time_step_limit\": [0.0, Infinity]", "\"time_step_limit\": [0.01, Infinity]"},
                       {"\"time_step_limit\": [0.0, Infinity]", "\"time_step_limit\": [0.0, 1.0]"}};
  for (const auto& [old_part, new_part] : mamba2)
    CHECK(config_error(dir, with(mamba2_json(), old_part, new_part))
              .find(new_part.substr(0, new_part.find(':')) + " must be ") == 0);
  CHECK_NOTHROW(read(dir, with(mamba2_json(), "Infinity", "{\"__float__\": \"Infinity\"}")));
}

TEST_CASE("hf config: what is no JSON object is refused in one line") {
  const TempDir dir;
  for (const std::string& text :
       {std::string("["), std::string("[]"), std::string("1"), std::string("{\"a\": }"), std::string("{\"a\": 1e999}"),
        std::string("{\"a\": 1} {}"), std::string("{\"a\": 1, \"a\": 2}"), std::string("{\"a\": {\"b\": 1, \"b\": 1}}"),
        std::string("{\"a\": \"\xff\"}"), std::string("{\"a\": 1}\0", 9), std::string("{\"a\": \"\n\"}"),
        "{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}",
        "{\"a\": \"" + std::string(2 << 20, 'x') + "\"}"}) {
    CAPTURE(text.substr(0, 30));
    CHECK(config_error(dir, text).find("not a valid JSON object: ") == 0);
  }
  CHECK(data_error([&] { load_hf_config(dir.file("missing.json")); }).find("missing.json") != std::string::npos);
}

TEST_CASE("json objects: values by key") {
  const TempDir dir;
  const JsonObject json = JsonObject::load(
      dir.write("a.json", R"({"i": -3, "x": 0.5, "t": "NaN \" Infinity", "f": true, "l": ["a", "b"], "n": null,
                              "o": {"k": [1, -Infinity, NaN]}})"),
      1000);
  CHECK(json.integer("i", -3, 0) == -3);
  CHECK(json.number("x") == 0.5);
  CHECK(json.number("i") == -3);
  CHECK(json.text("t") == "NaN \" Infinity");
  CHECK(json.flag("f"));
  CHECK(json.texts("l") == std::vector<std::string>{"a", "b"});
  CHECK_FALSE(json.has("n"));
  CHECK(json.number("n", 7) == 7);
  CHECK(json.keys().size() == 7);
  const JsonObject inner = json.object("o");
  CHECK(inner.json("k") == "[1,\"-Infinity\",\"NaN\"]");
  CHECK(data_error([&] { inner.integer("k", 0, 1); }).find("\"o.k\" must be an integer from 0 to 1, got a list of 3") !=
        std::string::npos);
  CHECK(data_error([&] { json.integer("i", 0, 9); }).find("\"i\" must be an integer from 0 to 9, got -3") !=
        std::string::npos);
  CHECK(data_error([&] { json.text("gone"); }).find("\"gone\" must be a string, but is missing") != std::string::npos);
  CHECK_THROWS_AS(json.texts("o"), DataError);
  CHECK_THROWS_AS(json.flag("x"), DataError);
  CHECK_THROWS_AS(json.object("l"), DataError);
}

}  // namespace margay::test
