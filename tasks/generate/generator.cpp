#include "tasks/generate/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <optional>
#include <span>

#include "engine/autograd.h"
#include "engine/error.h"
#include "tasks/generate/stop_strings.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

using Clock = std::chrono::steady_clock;

void require_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) throw ConfigError(fmt::format("{} must be at least {}, got {}", name, least, value));
}

/// Several texts of equal length, one token behind the other, and what the model makes of them.
class TextBatch {
 public:
  TextBatch(const LanguageModel& model, int64_t count, bool slide)
      : model_(model),
        state_(model.start(count)),
        texts_(static_cast<size_t>(count)),
        longest_(model.config().position == "learned" ? model.config().max_seq_len
                                                      : std::numeric_limits<int64_t>::max()),
        slide_(slide) {}

  /// Puts the same tokens behind all texts.
  void append(std::span<const int32_t> tokens) {
    for (std::vector<int32_t>& text : texts_) text.insert(text.end(), tokens.begin(), tokens.end());
  }
  /// Puts one token behind each text.
  void append_each(std::span<const int32_t> tokens) {
    for (size_t i = 0; i < texts_.size(); ++i) texts_[i].push_back(tokens[i]);
  }

  const std::vector<int32_t>& text(size_t index) const { return texts_[index]; }

  /// Runs the model over what is new. Returns the logits [count, V] of the token that comes next.
  std::vector<float> logits() {
    const auto length = static_cast<int64_t>(texts_.front().size());
    int64_t fresh = length - seen_;
    if (state_.position + fresh > longest_) {
      if (!slide_) fail_too_long(length);
      state_ = model_.start(static_cast<int64_t>(texts_.size()));
      fresh = std::min(length, (longest_ + 1) / 2);
    }
    seen_ = length;
    ids_.clear();
    for (const std::vector<int32_t>& text : texts_) ids_.insert(ids_.end(), text.end() - fresh, text.end());
    const Tensor ids = from_values(ids_, {static_cast<int64_t>(texts_.size()), fresh}, model_.device());
    return model_.step(ids, state_).to(DType::f32).to_vector<float>();
  }

 private:
  [[noreturn]] void fail_too_long(int64_t length) const {
    throw ConfigError(
        fmt::format("the text must have at most model.max_seq_len = {} tokens, where positions are "
                    "learned and it may not slide, got {}",
                    longest_, length));
  }

  const LanguageModel& model_;
  ModelState state_;
  std::vector<std::vector<int32_t>> texts_;
  int64_t longest_;
  bool slide_;
  int64_t seen_ = 0;  // tokens of each text that the model has been given
  std::vector<int32_t> ids_;
};

/// A sample in the making.
class GrowingText {
 public:
  GrowingText(const Tokenizer& tokenizer, const GenerateOptions& options, int64_t number)
      : tokenizer_(tokenizer),
        end_token_(options.stop_at_end_of_text ? tokenizer.end_of_text() : std::nullopt),
        most_tokens_(options.tokens),
        sampler_(options.sampling),
        random_(derived_seed(options.seed, "generate"), static_cast<uint64_t>(number)),
        stop_(options.stop) {
    result_.number = number;
  }

  bool ended() const { return ended_; }
  GeneratedText& result() { return result_; }

  /// Draws a token; returns the bytes that are certain to be part of the text.
  std::string draw(std::span<const float> logits, std::span<const int32_t> before) {
    const int32_t token = sampler_.draw(logits, before, random_);
    result_.tokens.push_back(token);
    if (token == end_token_) return end(SampleEnd::end_of_text);
    std::string fresh = stop_.push(tokenizer_.decode(std::span(&token, 1)));
    result_.text += fresh;
    if (stop_.found()) return fresh + end(SampleEnd::stop_string);
    if (static_cast<int64_t>(result_.tokens.size()) == most_tokens_) return fresh + end(SampleEnd::length);
    return fresh;
  }

  /// Ends the sample; returns the bytes that were held back.
  std::string end(SampleEnd reason) {
    ended_ = true;
    result_.end = reason;
    const std::string rest = stop_.finish();
    result_.text += rest;
    return rest;
  }

 private:
  const Tokenizer& tokenizer_;
  std::optional<int32_t> end_token_;
  int64_t most_tokens_;
  Sampler sampler_;
  RandomStream random_;
  StopStrings stop_;
  GeneratedText result_;
  bool ended_ = false;
};

std::vector<int32_t> prompt_tokens(const LanguageModel& model, const Tokenizer& tokenizer, std::string_view prompt) {
  if (tokenizer.vocab_size() > model.config().vocab_size) {
    throw ConfigError(fmt::format("model.vocab_size must be at least the {} tokens of the tokenizer, got {}",
                                  tokenizer.vocab_size(), model.config().vocab_size));
  }
  std::vector<int32_t> tokens = tokenizer.encode(prompt);
  if (tokens.empty() && tokenizer.end_of_text()) tokens.push_back(*tokenizer.end_of_text());
  if (tokens.empty()) throw ConfigError("the prompt must not be empty: the model needs a token to begin with");
  return tokens;
}

}  // namespace

std::string_view to_string(SampleEnd end) {
  constexpr std::array<std::string_view, 4> names = {"length", "end_of_text", "stop_string", "interrupted"};
  return names[static_cast<size_t>(end)];
}

std::vector<GeneratedText> generate(const LanguageModel& model, const Tokenizer& tokenizer, std::string_view prompt,
                                    const GenerateOptions& options, GenerateObserver& observer) {
  require_at_least("tokens", options.tokens, 0);
  require_at_least("count", options.count, 1);
  require_at_least("first", options.first, 0);
  const NoGrad no_grad;
  const auto vocabulary = static_cast<size_t>(tokenizer.vocab_size());  // a model may have unused tokens beyond it
  TextBatch batch(model, options.count, options.slide);
  batch.append(prompt_tokens(model, tokenizer, prompt));
  std::vector<GrowingText> samples;
  for (int64_t i = 0; i < options.count; ++i) samples.emplace_back(tokenizer, options, options.first + i);
  const size_t stride = static_cast<size_t>(model.config().vocab_size);

  std::vector<int32_t> next(samples.size());
  const Clock::time_point begin = Clock::now();
  const auto tell = [&](size_t i, const std::string& bytes) {
    GeneratedText& result = samples[i].result();
    if (!bytes.empty()) observer.on_text(static_cast<int64_t>(i), bytes);
    if (!samples[i].ended()) return;
    result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    observer.on_end(static_cast<int64_t>(i), result);
  };
  const auto end_all = [&](SampleEnd reason) {
    for (size_t i = 0; i < samples.size(); ++i) {
      if (!samples[i].ended()) tell(i, samples[i].end(reason));
    }
  };
  if (options.tokens == 0) end_all(SampleEnd::length);
  while (!std::all_of(samples.begin(), samples.end(), [](const GrowingText& sample) { return sample.ended(); })) {
    if (observer.stop_requested()) {
      end_all(SampleEnd::interrupted);
      break;
    }
    const std::vector<float> logits = batch.logits();
    for (size_t i = 0; i < samples.size(); ++i) {
      if (samples[i].ended()) continue;  // its last token once more: nobody reads what comes of it
      const std::string bytes = samples[i].draw(std::span(logits).subspan(i * stride, vocabulary), batch.text(i));
      next[i] = samples[i].result().tokens.back();
      tell(i, bytes);
    }
    batch.append_each(next);
  }
  std::vector<GeneratedText> results;
  for (GrowingText& sample : samples) results.push_back(std::move(sample.result()));
  return results;
}

}  // namespace margay
