#include <fmt/format.h>

#include <array>
#include <memory>

#include "tasks/train/trainer.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {
namespace {

constexpr int64_t kBatch = 64, kVocabulary = 8192, kWidth = 64;

struct Recall {
  int64_t seq_len, pairs;
};
constexpr std::array<Recall, 3> kTasks = {{{64, 4}, {256, 16}, {512, 64}}};

Config config_of(const std::string& mixer, const Recall& recall) {
  Config config;
  config.model.mixer = {mixer};
  config.model.d_model = kWidth;
  config.model.vocab_size = kVocabulary;
  config.model.max_seq_len = recall.seq_len;
  // Mixers with filters of their own need one layer, the others two.
  const bool one_layer = mixer == "cat" || mixer == "lcat" || mixer == "lincat";
  config.model.n_layers = one_layer ? 1 : 2;
  if (one_layer) config.model.cat.conv_width = 4;
  if (mixer == "attention") config.model.position = "learned";
  config.task.vocab_size = kVocabulary;
  config.task.seq_len = recall.seq_len;
  config.task.num_kv_pairs = recall.pairs;
  config.task.train_examples = 0;  // fresh ones for ever
  config.train.batch_size = kBatch;
  config.train.schedule = "constant";
  config.train.steps = int64_t{1} << 40;
  return config;
}

}  // namespace

std::vector<BenchRow> training_rows() {
  std::vector<BenchRow> rows;
  for (const char* mixer :
       {"attention", "cat", "lcat", "lincat", "linear_attention", "based", "delta_net", "gated_delta_net", "gla",
        "retnet", "mamba", "mamba2", "rwkv", "base_conv", "hyena", "s4d", "h3"}) {
    for (const Recall& recall : kTasks) {
      const Config config = config_of(mixer, recall);
      rows.push_back({.name = fmt::format("train/{}-L{}", mixer, recall.seq_len),
                      .tokens = kBatch * recall.seq_len,
                      .flops = 0,
                      .prepare = [config](Device device) {
                        const auto trainer = std::make_shared<Trainer>(config, device);
                        return [trainer] { trainer->step(); };
                      }});
    }
  }
  return rows;
}

}  // namespace margay::cli
