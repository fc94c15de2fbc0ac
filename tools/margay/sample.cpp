#include <fmt/format.h>

#include <limits>

#include "engine/autograd.h"
#include "engine/error.h"
#include "tasks/generate.h"
#include "tasks/train/model_file.h"
#include "tasks/utf8.h"
#include "tools/margay/terminal.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr int64_t kBytes = 256;

/// A text that is fed to a model and goes on with what the model makes of it.
class Generator {
 public:
  explicit Generator(const LanguageModel& model) : model_(model), state_(model.start(1)) {}

  /// Feeds tokens behind those before.
  void feed(const std::vector<int32_t>& tokens) {
    const size_t before = text_.size();
    text_.insert(text_.end(), tokens.begin(), tokens.end());
    const auto longest = static_cast<size_t>(model_.config().max_seq_len);
    size_t first = before;
    // Learned positions end: then the model starts again, in the middle of what it may see.
    if (model_.config().position == "learned" &&
        state_.position + static_cast<int64_t>(tokens.size()) > model_.config().max_seq_len) {
      state_ = model_.start(1);
      first = text_.size() - std::min(text_.size(), (longest + 1) / 2);
    }
    const std::span<const int32_t> fresh = std::span(text_).subspan(first);
    logits_ = model_.step(from_values(fresh, {1, static_cast<int64_t>(fresh.size())}, model_.device()), state_);
  }
  std::vector<float> logits() const { return logits_.to_vector<float>(); }

 private:
  const LanguageModel& model_;
  ModelState state_;
  std::vector<int32_t> text_;
  Tensor logits_;
};

/// Text for a terminal or file: whole characters only, and on a terminal no control characters but line ends and tabs.
std::string printable(std::string text, bool terminal) {
  if (!terminal) return text;
  std::erase_if(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f;
  });
  return text;
}

void generate(const LanguageModel& model, const std::string& prompt, int64_t tokens, const SampleOptions& options,
              int64_t seed) {
  const NoGrad no_grad;
  const bool terminal = output_is_terminal();
  RandomStream random(static_cast<uint64_t>(seed), hash_name("sample"));
  Generator generator(model);
  Utf8Stream text;
  std::vector<int32_t> next;
  std::string begin;
  for (const char c : prompt) {
    next.push_back(static_cast<unsigned char>(c));
    begin += text.push(static_cast<unsigned char>(c));
  }
  print_out(printable(begin, terminal));
  for (int64_t i = 0; i < tokens; ++i) {
    generator.feed(next);
    next = {sample_token(generator.logits(), options, random)};
    print_out(printable(text.push(static_cast<unsigned char>(next.front())), terminal));
  }
  if (terminal) print_out("\n");
}

int run(const Arguments& arguments) {
  std::string path, prompt;
  int64_t tokens = 256, seed = 123;
  SampleOptions options;
  Device device;
  CommandLine line("sample", "Lets a byte-level language model go on with a text, byte by byte.");
  line.argument("CHECKPOINT", path, "a checkpoint or run folder of a model with vocab_size = 256");
  line.option("--prompt TEXT", prompt, "the text to go on with", true);
  line.option("--tokens N", tokens, 0, "bytes to add [256]");
  line.option("--temperature T", options.temperature, 0, std::numeric_limits<double>::infinity(),
              "below 1 bolder choices are rarer; 0 = always the likeliest byte [1]");
  line.option("--top-k K", options.top_k, 0, "draw from the K likeliest only; 0 = all [0]");
  line.option("--top-p P", options.top_p, 0, 1, "draw from the likeliest that together have probability P [1]");
  line.seed([&](int64_t value) { seed = value; }, "of the draws: the same seed gives the same text [123]");
  line.device_and_threads(device);
  line.example("margay sample runs/lm-kjv-cat --prompt 'In the beginning' --tokens 400 --temperature 0.7", "");
  if (!line.parse(arguments)) return 0;
  if (prompt.empty()) throw ConfigError("--prompt must not be empty: the model needs a byte to begin with");

  const std::string checkpoint = find_checkpoint(path);
  const Config config = load_checkpoint_config(checkpoint);
  if (config.model.vocab_size != kBytes) {
    throw ConfigError(fmt::format("sample needs a byte-level model, with model.vocab_size = {}, got {}", kBytes,
                                  config.model.vocab_size));
  }
  generate(load_model(checkpoint, config.model, device), prompt, tokens, options, seed);
  return 0;
}

}  // namespace

extern const Verb kSample;
constinit const Verb kSample = {"sample", "let a language model go on with a text", run};

}  // namespace margay::cli
