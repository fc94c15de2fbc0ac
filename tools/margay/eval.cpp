#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/names.h"
#include "tasks/registry.h"
#include "tasks/train/compressors.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/model_file.h"
#include "tasks/train/text_score.h"
#include "tools/margay/line_display.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kAllExamples = int64_t{1} << 40;  // more windows than any text has

struct EvalArguments {
  std::string path, split = "test";
  std::vector<std::string> overrides;
  int64_t length = 0, stride = 0;
  bool all = false, compress = false, json = false;
  std::optional<std::string> csv, plot;
  Device device;
};

bool parse(const Arguments& words, EvalArguments& arguments) {
  CommandLine line(
      "eval",
      "Measures a model on the test examples of its task: mean loss, and the share of scored tokens that it\n"
      "predicts right, by example, then averaged over examples. Of a text also perplexity and bits per byte.");
  line.argument("RUN|CHECKPOINT", arguments.path, "the folder of a run or of a checkpoint");
  line.arguments("key=value", arguments.overrides, "changes of its configuration, as task.seq_len=256");
  line.option("--split NAME", arguments.split, "test or validation [test]");
  line.option("--length N", arguments.length, 1, "tokens of an example, as task.seq_len=N");
  line.option("--stride N", arguments.stride, 1,
              "text: windows N tokens apart, so that length - N tokens stand before each, as task.stride=N");
  line.flag("--all", arguments.all, "all examples of a text, not task.test_examples");
  line.flag("--compressors", arguments.compress, "text: beside gzip, bzip2 and xz on the bytes that are scored");
  line.option("--csv FILE", arguments.csv, "text: write the loss by position in the window");
  line.option("--plot FILE.svg", arguments.plot, "text: draw it");
  line.flag("--json", arguments.json, "print one JSON object");
  line.device_and_threads(arguments.device);
  line.example("margay eval runs/mqar-64-cat", "");
  line.example("margay eval runs/ar-128-cat task.seq_len=1024 --json", "on longer sequences than it was trained on");
  line.example("margay eval runs/lm-kjv-cat --stride 32 --all --compressors", "a text, with context for every token");
  line.example("margay eval runs/lm-kjv-neox-cat --length 512 model.yarn_scale=4 --plot position.svg",
               "four times the training length, with YaRN");
  return line.parse(words);
}

Split parse_split(const std::string& name) {
  if (name == "test") return Split::test;
  if (name == "validation") return Split::validation;
  throw ConfigError(fmt::format("--split must be test or validation, got {}", margay::quoted(name)));
}

Config changed(Config config, const EvalArguments& arguments) {
  for (const std::string& assignment : arguments.overrides) apply_override(config, assignment);
  if (arguments.length > 0) config.task.seq_len = arguments.length;
  if (arguments.stride > 0) config.task.stride = arguments.stride;
  const bool for_text = arguments.stride > 0 || arguments.all || arguments.compress || arguments.csv || arguments.plot;
  if (for_text && config.task.name != "text") {
    const char* option = arguments.stride > 0 ? "--stride"
                         : arguments.all      ? "--all"
                         : arguments.compress ? "--compressors"
                         : arguments.csv      ? "--csv"
                                              : "--plot";
    throw ConfigError(fmt::format("{} is for task \"text\", got {}", option, margay::quoted(config.task.name)));
  }
  if (arguments.all) config.task.test_examples = kAllExamples;
  return config;
}

/// Passes batches on to a score, and tells a person how far the evaluation is.
class Progress final : public EvaluationObserver {
 public:
  Progress(TextScore* score, bool quiet) : score_(score), display_(quiet), start_(Clock::now()) {}

  void on_batch(const Batch& batch, std::span<const float> nll, int64_t examples, int64_t all) override {
    if (score_) score_->on_batch(batch, nll, examples, all);
    tokens_ += batch.examples * batch.columns;
    if (!display_.due(false)) return;
    const double share = static_cast<double>(examples) / static_cast<double>(all);
    const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
    const std::string text =
        fmt::format("{:.0f} %  {}/{} examples  {} tokens/s  ETA {}", 100 * share, examples, all,
                    short_count(static_cast<double>(tokens_) / passed), duration(passed * (1 - share) / share));
    display_.show("eval", share, text, text);
  }

 private:
  TextScore* score_;
  LineDisplay display_;
  Clock::time_point start_;
  int64_t tokens_ = 0;
};

/// Everything that was measured.
struct Measured {
  Config config;
  Evaluation evaluation;
  std::optional<TextScore> text = {};
  std::vector<std::pair<Compressor, CompressedSize>> compressed = {};

  TokenSum total() const { return text->total(); }
  double bits_per_byte(int64_t bytes) const {
    return 8 * static_cast<double>(bytes) / static_cast<double>(total().bytes);
  }
};

void add_compressors(Measured& measured, const Task& task, Split split, const Tokenizer& tokenizer, bool quiet) {
  const TextSource held_out = [&](const auto& take) {
    read_scored_text(task, split, measured.evaluation.examples, tokenizer, take);
  };
  const TextSource training = [&](const auto& take) { read_text(task, Split::train, tokenizer, take); };
  LineDisplay display(quiet);
  for (const Compressor& compressor : compressors()) {
    const double share = static_cast<double>(measured.compressed.size()) / static_cast<double>(compressors().size());
    if (display.due(true)) display.show("eval", share, compressor.name, compressor.name);
    measured.compressed.emplace_back(compressor, compressed_size(compressor, held_out, training));
  }
}

Json compressor_json(const Measured& measured, const Compressor& compressor, const CompressedSize& size) {
  Json entry{{"name", compressor.name}, {"installed", size.alone.has_value()}};
  if (size.alone) {
    entry["bytes"] = *size.alone;
    entry["bits_per_byte"] = measured.bits_per_byte(*size.alone);
  }
  if (size.given) {
    entry["bytes_given_training"] = *size.given;
    entry["bits_per_byte_given_training"] = measured.bits_per_byte(*size.given);
  }
  return entry;
}

std::string as_json(const Measured& measured) {
  const Evaluation& evaluation = measured.evaluation;
  Json json{{"loss", evaluation.loss},
            {"accuracy", evaluation.accuracy},
            {"perplexity", std::exp(evaluation.loss)},
            {"bits_per_byte", Json()},
            {"examples", evaluation.examples},
            {"seq_len", measured.config.task.seq_len},
            {"tokens", evaluation.tokens},
            {"seconds", evaluation.seconds},
            {"tokens_per_second", static_cast<double>(evaluation.tokens) / evaluation.seconds}};
  if (measured.text) {
    const TokenSum total = measured.total();
    json["bits_per_byte"] = total.bits_per_byte();
    json["scored_tokens"] = total.tokens;
    json["scored_bytes"] = total.bytes;
    for (const auto& [first, last, sum] : measured.text->by_position()) {
      if (sum.tokens == 0) continue;
      json["by_position"].push_back({{"first", first},
                                     {"last", last},
                                     {"tokens", sum.tokens},
                                     {"loss", sum.mean_loss()},
                                     {"bits_per_byte", sum.bits_per_byte()}});
    }
  }
  for (const auto& [compressor, size] : measured.compressed)
    json["compressors"].push_back(compressor_json(measured, compressor, size));
  return json.dump() + '\n';
}

std::string compressor_table(const Measured& measured, const std::string& model) {
  const TokenSum total = measured.total();
  const auto kept = static_cast<int64_t>(std::ceil(total.bits_per_byte() * static_cast<double>(total.bytes) / 8));
  std::vector<std::vector<std::string>> rows{
      {"", "bytes", "bits a byte", "given the training text", "bits a byte"},
      {"as it is", with_commas(total.bytes), "8.0000"},
      {model, "", "", with_commas(kept), fmt::format("{:.4f}", total.bits_per_byte())}};
  for (const auto& [compressor, size] : measured.compressed) {
    rows.push_back({compressor.name});
    if (!size.alone) rows.back().push_back("not installed");
    for (const std::optional<int64_t>& bytes : {size.alone, size.given}) {
      if (!bytes) continue;
      rows.back().push_back(with_commas(*bytes));
      rows.back().push_back(fmt::format("{:.4f}", measured.bits_per_byte(*bytes)));
    }
  }
  return table(rows, true);
}

std::string as_text(const Measured& measured, const std::string& model) {
  const Evaluation& evaluation = measured.evaluation;
  std::string text = fmt::format("loss {:.6f}", evaluation.loss);
  if (measured.text) {
    const TokenSum total = measured.total();
    text += fmt::format(" ({:.4f} bits a byte, perplexity {:.4f} a token)", total.bits_per_byte(), total.perplexity());
  }
  text += fmt::format("  accuracy {:.4f}  examples {}  tokens/s {}\n", evaluation.accuracy,
                      with_commas(evaluation.examples),
                      short_count(static_cast<double>(evaluation.tokens) / evaluation.seconds));
  return measured.compressed.empty() ? text : text + '\n' + compressor_table(measured, model);
}

int run(const Arguments& words) {
  EvalArguments arguments;
  if (!parse(words, arguments)) return 0;
  const Split split = parse_split(arguments.split);
  const std::string checkpoint = find_checkpoint(arguments.path);
  Config trained = load_checkpoint_config(checkpoint);
  if (const std::string own = checkpoint_tokenizer(checkpoint); own != "bytes") trained.task.tokenizer = own;
  Measured measured{changed(trained, arguments), {}};
  const Config& config = measured.config;
  const auto task = make_task(config);
  const auto tokenizer = config.task.name == "text" ? tokenizer_of(*task) : nullptr;
  if (tokenizer) measured.text.emplace(config.task.seq_len, *tokenizer);
  const LanguageModel model = load_model(checkpoint, config.model, arguments.device);

  // Longer examples go in smaller batches, so that memory does not grow with their length.
  const int64_t batch_size = std::max<int64_t>(
      1, config.train.batch_size * std::min(trained.task.seq_len, config.task.seq_len) / config.task.seq_len);
  const bool quiet = arguments.json || !output_is_terminal();
  {
    Progress progress(measured.text ? &*measured.text : nullptr, quiet);
    measured.evaluation = evaluate(model, *task, split, batch_size, &progress);
  }
  if (arguments.compress) add_compressors(measured, *task, split, *tokenizer, quiet);
  if (arguments.csv) write_file_atomically(*arguments.csv, to_csv(measured.text->by_position()));
  if (arguments.plot) {
    const std::string subtitle = fmt::format("{}, {} windows of {} tokens", arguments.path,
                                             with_commas(measured.evaluation.examples), config.task.seq_len);
    write_file_atomically(*arguments.plot,
                          to_svg(position_figure(measured.text->by_position(), subtitle, trained.task.seq_len)));
  }
  print_out(arguments.json ? as_json(measured) : as_text(measured, arguments.path));
  return 0;
}

}  // namespace

extern const Verb kEval;
constinit const Verb kEval = {"eval", "measure a model on the test examples of its task", run};

}  // namespace margay::cli
