#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <limits>
#include <optional>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/generate/generator.h"
#include "tasks/train/model_file.h"
#include "tools/margay/sample_output.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr size_t kLongestPrompt = size_t{1} << 24;  // bytes; far more than a model takes in a sensible time
constexpr double kAnyTemperature = std::numeric_limits<double>::infinity();

struct SampleArguments {
  std::string path;
  std::optional<std::string> prompt, prompt_file, tokenizer;
  GenerateOptions generate;
  Device device;
  bool json = false, raw = false, ignore_end = false, no_slide = false;
};

bool parse(const Arguments& words, SampleArguments& arguments) {
  GenerateOptions& generate = arguments.generate;
  SampleOptions& sampling = generate.sampling;
  CommandLine line("sample", "Lets a language model go on with a text, token by token.");
  line.argument("CHECKPOINT", arguments.path, "a checkpoint or run folder");
  line.option("--prompt TEXT", arguments.prompt, "the text to go on with");
  line.option("--prompt-file FILE", arguments.prompt_file, "a file that holds it; - for standard input");
  line.option("--tokens N", generate.tokens, 0, "tokens to add, at most [256]");
  line.option("--temperature T", sampling.temperature, 0, kAnyTemperature,
              "below 1 bolder choices are rarer; 0 = always the likeliest token [1]");
  line.option("--top-k K", sampling.top_k, 0, "draw from the K likeliest only; 0 = all [0]");
  line.option("--top-p P", sampling.top_p, 0, 1, "draw from the likeliest that together have probability P [1]");
  line.option("--min-p P", sampling.min_p, 0, 1, "draw from those at least P times as likely as the likeliest [0]");
  line.option("--repetition-penalty X", sampling.repetition_penalty, 1e-3, 1e3,
              "tokens that occurred are less likely: their logit / X, or * X where negative [1]");
  line.option("--stop TEXT", generate.stop, "end before this text; may be given several times");
  line.flag("--ignore-end", arguments.ignore_end, "go on behind the end of a document");
  line.option("--count N", generate.count, 1, "samples, made side by side [1]");
  line.option("--first I", generate.first, 0, "number of the first one: sample I of a seed is always the same [0]");
  line.flag("--no-slide", arguments.no_slide, "an error, not a shorter memory, where learned positions end");
  line.option("--tokenizer NAME", arguments.tokenizer, "bytes or a tokenizer.json [the checkpoint's]");
  line.flag("--json", arguments.json, "print one JSON object a line for each sample");
  line.flag("--raw", arguments.raw, "print bytes to a terminal as they are");
  line.seed([&](int64_t value) { generate.seed = value; }, "of the draws: the same seed gives the same text [123]");
  line.device_and_threads(arguments.device);
  line.example("margay sample runs/lm-kjv-cat --prompt 'In the beginning' --tokens 400 --temperature 0.7", "");
  line.example("margay sample runs/lm-kjv-cat --prompt 'And God said' --stop . --count 4 --top-p 0.9",
               "four sentences");
  line.example("head -c 2000 data/kjv.txt | margay sample runs/lm-kjv-cat --prompt-file - --json", "");
  if (!line.parse(words)) return false;
  generate.stop_at_end_of_text = !arguments.ignore_end;
  generate.slide = !arguments.no_slide;
  if (arguments.prompt.has_value() == arguments.prompt_file.has_value())
    throw ConfigError("one of --prompt TEXT and --prompt-file FILE must be given");
  for (const std::string& stop : generate.stop)
    if (stop.empty()) throw ConfigError("--stop must not be empty");
  return true;
}

/// All of a file, or of standard input where it is "-".
std::string content(const std::string& path) {
  const bool standard = path == "-";
  if (!standard) require_path(path);
  const Descriptor file(standard ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const std::string name = standard ? "standard input" : path;
  if (!file.valid()) throw_file_error(name, "cannot be opened", errno);
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (true) {
    const ssize_t count = ::read(file.number(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error(name, "cannot be read", errno);
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
    if (text.size() > kLongestPrompt)
      throw DataError(
          fmt::format("{}: a prompt must have at most {} bytes, got more", quoted_path(name), kLongestPrompt));
  }
}

int run(const Arguments& words) {
  SampleArguments arguments;
  if (!parse(words, arguments)) return 0;
  const std::string checkpoint = find_checkpoint(arguments.path);
  const Config config = load_checkpoint_config(checkpoint);
  const auto tokenizer =
      arguments.tokenizer ? make_tokenizer(*arguments.tokenizer) : load_tokenizer(checkpoint, config);
  const std::string prompt = arguments.prompt ? *arguments.prompt : content(*arguments.prompt_file);
  if (prompt.empty() && !tokenizer->end_of_text())
    throw ConfigError("--prompt must not be empty: the model needs a token to begin with");
  const LanguageModel model = load_model(checkpoint, config.model, arguments.device);
  note_stop_signals();
  if (arguments.json) {
    JsonSamples output(prompt);
    generate(model, *tokenizer, prompt, arguments.generate, output);
  } else {
    TextSamples output(prompt, arguments.generate.count, arguments.generate.first, arguments.raw);
    generate(model, *tokenizer, prompt, arguments.generate, output);
  }
  return stop_signal() == 0 ? 0 : 128 + stop_signal();
}

}  // namespace

extern const Verb kSample;
constinit const Verb kSample = {"sample", "let a language model go on with a text", run};

}  // namespace margay::cli
