// `margay import` and `margay export` as commands, and the other verbs on what they make.

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/npy.h"
#include "engine/tensor.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/process.h"

using namespace margay;
using margay::test::Ended;
using margay::test::TempDir;

namespace {

using Words = std::vector<std::string>;

const Words kNeox = {"model.backbone=gpt_neox", "model.mixer=attention", "model.d_model=16",
                     "model.n_layers=2",        "model.n_heads=2",       "model.vocab_size=256",
                     "model.max_seq_len=24",    "model.position=rope",   "model.rope_fraction=0.5"};

Ended run(Words words, const Words& more = {}) {
  words.insert(words.end(), more.begin(), more.end());
  return test::run_margay(words);
}

void check_error(const Ended& ended, int code, const std::string& message) {
  CAPTURE(ended.error);
  CHECK(ended.code == code);
  CHECK(std::count(ended.error.begin(), ended.error.end(), '\n') == 1);
  CHECK(ended.error.find(message) != std::string::npos);
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("margay import and export: there and back, and with filters, the logits stay") {
  const TempDir dir;
  dir.write("model.toml", "[model]\n");
  CHECK(run({"init", dir.file("model.toml"), "--out", dir.file("fresh")}, kNeox).code == 0);
  CHECK(run({"export", dir.file("fresh"), "--out", dir.file("hf")}).code == 0);
  dir.write("hf/tokenizer.json", "{}");
  CHECK(run({"import", dir.file("hf"), "--out", dir.file("plain")}).code == 0);
  CHECK(content(dir.file("plain/tokenizer.json")) == "{}");
  std::filesystem::remove(dir.file("hf/tokenizer.json"));
  CHECK(run({"import", dir.file("hf"), "--out", dir.file("cat"), "--add-conv", "21"}).code == 0);
  const std::vector<int32_t> ids{0, 1, 255, 7, 7, 42, 9, 200, 3, 3};
  save_npy(dir.file("inputs.npy"), from_values(ids, {1, 10}));
  for (const char* checkpoint : {"fresh", "plain", "cat"})
    CHECK(run({"forward", dir.file(checkpoint), "--inputs", dir.file("inputs.npy"), "--out",
               dir.file(std::string(checkpoint) + ".npy")})
              .code == 0);
  CHECK(content(dir.file("plain.npy")).size() > 10 * 256 * 4);
  CHECK(content(dir.file("plain.npy")) == content(dir.file("fresh.npy")));
  CHECK(content(dir.file("cat.npy")) == content(dir.file("fresh.npy")));
  CHECK(content(dir.file("plain/model.safetensors")).size() > 1000);

  const Ended info = run({"info", dir.file("cat")});
  CHECK(info.code == 0);
  CHECK(info.out.find("backbone gpt_neox, 2 layers of cat") != std::string::npos);
  CHECK(info.out.find("gpt_neox.layers.1.attention") != std::string::npos);
  const Ended sample = run({"sample", dir.file("cat"), "--prompt", "In the", "--tokens", "40"});
  CHECK(sample.code == 0);
  CHECK(sample.out.starts_with("In the"));
}

TEST_CASE("margay import and export: exit codes") {
  const TempDir dir;
  check_error(run({"import", dir.file("nowhere"), "--out", dir.file("out")}), 3, "does not exist");
  check_error(run({"export", dir.file("nowhere"), "--out", dir.file("out")}), 3, "does not exist");
  check_error(run({"import", dir.file("nowhere")}), 2, "--out CHECKPOINT is missing");
  check_error(run({"import", dir.file("nowhere"), "--out", dir.file("out"), "--add-conv", "0"}), 2, "--add-conv");
  std::filesystem::create_directories(dir.file("pickled"));
  dir.write("pickled/pytorch_model.bin", "\x80\x02");
  check_error(run({"import", dir.file("pickled"), "--out", dir.file("out")}), 3, "is a pickle file");
  dir.write("model.toml", "[model]\n");
  CHECK(run({"init", dir.file("model.toml"), "--out", dir.file("fresh")}).code == 0);
  check_error(run({"export", dir.file("fresh"), "--out", dir.file("out")}), 2, "transformers package");
  CHECK(run({"init", dir.file("model.toml"), "--out", dir.file("neox")}, kNeox).code == 0);
  CHECK(run({"export", dir.file("neox"), "--out", dir.file("hf")}).code == 0);
  dir.write("hf/config.json", "{\"architectures\": [\"GPTNeoXForCausalLM\"]}");
  check_error(run({"import", dir.file("hf"), "--out", dir.file("out")}), 3, "\"hidden_size\" must be an integer");
  dir.write("hf/model.safetensors", "short");
  check_error(run({"import", dir.file("hf"), "--out", dir.file("out")}), 3, "not a valid safetensors file");
  CHECK_FALSE(std::filesystem::exists(dir.file("out")));
}
