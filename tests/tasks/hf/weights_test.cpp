// The files of a Hugging Face folder: one, shards with an index, and everything that an index may get wrong.

#include "tasks/hf/weights.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/hf/convert.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/tasks/hf/folders.h"

namespace margay::test {
namespace {

// Every third tensor in a shard of its own kind; the index as transformers writes it.
struct Sharded {
  std::string folder, index;

  explicit Sharded(const TempDir& dir, const HfTensors& tensors) : folder(dir.file("sharded")) {
    std::filesystem::create_directories(folder);
    dir.write("sharded/config.json", neox_json());
    std::vector<HfTensors> shards(3);
    std::string map;
    size_t bytes = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      shards[i % 3].push_back(tensors[i]);
      map += fmt::format("{}\"{}\": \"{}\"", map.empty() ? "" : ", ", tensors[i].name, name_of_shard(i % 3));
      bytes += tensors[i].bytes.size();
    }
    for (size_t i = 0; i < shards.size(); ++i) write_tensors(folder + "/" + name_of_shard(i), shards[i]);
    index = fmt::format("{{\"metadata\": {{\"total_size\": {}}}, \"weight_map\": {{{}}}}}", bytes, map);
    dir.write("sharded/model.safetensors.index.json", index);
  }
  static std::string name_of_shard(size_t i) { return fmt::format("model-{:05}-of-00003.safetensors", i + 1); }
};

std::string open_error(const std::string& folder) {
  const std::string message = data_error([&] { HfWeights::open(folder); });
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

}  // namespace

TEST_CASE("hf weights: shards give what one file gives") {
  const TempDir dir;
  const HfTensors tensors = neox_tensors("BF16");
  const Sharded sharded(dir, tensors);
  const HfWeights weights = HfWeights::open(sharded.folder);
  CHECK(weights.names().size() == tensors.size());
  for (const HfStored& tensor : tensors) {
    const RawTensor raw = weights.raw(tensor.name);
    CHECK(raw.shape == tensor.shape);
    CHECK(std::vector<uint8_t>(raw.bytes.begin(), raw.bytes.end()) == tensor.bytes);
  }
  import_hf(sharded.folder, dir.file("checkpoint"), 0);
  export_hf(dir.file("checkpoint"), dir.file("out"));
  const SafetensorsFile out = SafetensorsFile::open(dir.file("out/model.safetensors"));
  for (const HfStored& tensor : tensors) {
    const auto bytes = out.bytes(tensor.name);
    CHECK(std::vector<uint8_t>(bytes.begin(), bytes.end()) == tensor.bytes);
  }
}

TEST_CASE("hf weights: an index that lies is found out") {
  const TempDir dir;
  const HfTensors tensors = neox_tensors();
  const Sharded sharded(dir, tensors);
  const std::string key = "\"gpt_neox.layers.0.input_layernorm.weight\": ";
  const std::string second = fmt::format("{}\"{}\"", key, Sharded::name_of_shard(1));
  const auto error_with = [&](std::string_view old_part, const std::string& new_part) {
    dir.write("sharded/model.safetensors.index.json", with(sharded.index, old_part, new_part));
    return open_error(sharded.folder);
  };
  const auto shard_named = [&](const std::string& shard) { return error_with(second, key + shard); };
  for (const char* shard : {R"("../model.safetensors")", R"("/etc/model.safetensors")", R"("a/b.safetensors")",
                            R"("..")", R"("")", R"("a\\b.safetensors")", R"("pytorch_model.bin")"})
    CHECK(shard_named(shard).find("must be a .safetensors file of the same folder, got ") != std::string::npos);
  CHECK(shard_named("7").find("must be a string, got 7") != std::string::npos);
  CHECK(shard_named("\"gone.safetensors\"").find("gone.safetensors") != std::string::npos);
  CHECK(shard_named(fmt::format("\"{}\"", Sharded::name_of_shard(0))).find("which does not hold it") !=
        std::string::npos);
  CHECK(error_with(second + ", ", "").find("does not list tensor \"gpt_neox.layers.0.input_layernorm.weight\"") !=
        std::string::npos);
  CHECK(error_with(second, second + ", " + second).find("twice") != std::string::npos);
  CHECK(error_with(second, fmt::format("{}, \"more\": \"{}\"", second, Sharded::name_of_shard(0)))
            .find("\"more\" should be in") != std::string::npos);
  CHECK(error_with("\"total_size\": ", "\"total_size\": 1").find("\"metadata.total_size\" must be the ") !=
        std::string::npos);
  CHECK(error_with("\"weight_map\"", "\"weight_maps\"").find("\"weight_map\" must be an object, but is missing") !=
        std::string::npos);
  CHECK(error_with("{\"metadata\"", "[{\"metadata\"").find("not a valid JSON object") != std::string::npos);

  // A tensor in two shards.
  dir.write("sharded/model.safetensors.index.json", sharded.index);
  write_tensors(sharded.folder + "/" + Sharded::name_of_shard(2), {tensors[2], tensors[0]});
  CHECK(open_error(sharded.folder).find("holds tensor \"gpt_neox.embed_in.weight\", as ") != std::string::npos);
  dir.write("sharded/" + Sharded::name_of_shard(1), "short");
  CHECK(open_error(sharded.folder).find("not a valid safetensors file") != std::string::npos);
}

TEST_CASE("hf weights: pickle files are refused with advice") {
  const TempDir dir;
  std::filesystem::create_directories(dir.file("old"));
  dir.write("old/config.json", neox_json());
  CHECK(open_error(dir.file("old")).find("has neither model.safetensors nor model.safetensors.index.json") !=
        std::string::npos);
  dir.write("old/pytorch_model.bin", "x");
  const std::string message = open_error(dir.file("old"));
  CHECK(message.find("pytorch_model.bin\": is a pickle file") != std::string::npos);
  CHECK(message.find("save_pretrained") != std::string::npos);
  CHECK(open_error(dir.file("nowhere")).find("does not exist") != std::string::npos);
  // Beside safetensors they do not matter.
  write_tensors(dir.file("old/model.safetensors"), neox_tensors());
  CHECK_NOTHROW(import_hf(dir.file("old"), dir.file("checkpoint"), 0));
}

}  // namespace margay::test
