#include "tasks/generate/generator.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/error.h"
#include "models/mixer.h"
#include "tests/models/small_model.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;

namespace {

/// Letters 'a' ... 'u' as tokens 0 ... 20, one of which may be the end of a text.
class Letters final : public Tokenizer {
 public:
  explicit Letters(std::optional<int32_t> end = std::nullopt) : end_(end) {}
  int64_t vocab_size() const override { return 21; }
  size_t encode_part(std::string_view text, bool, std::vector<int32_t>& tokens) const override {
    for (const char c : text) tokens.push_back(c - 'a');
    return text.size();
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) text += static_cast<char>('a' + token);
    return text;
  }
  std::optional<int32_t> end_of_text() const override { return end_; }
  const std::string& json() const override { return json_; }

 private:
  std::string json_;
  std::optional<int32_t> end_;
};

/// Gathers what it is told; interrupts when it is asked for the `patience`th token.
struct Listener final : GenerateObserver {
  std::vector<std::string> texts = std::vector<std::string>(8);
  std::vector<int> ends = std::vector<int>(8, 0);
  int64_t patience = 1'000'000;
  void on_text(int64_t index, std::string_view bytes) override { texts[static_cast<size_t>(index)] += bytes; }
  void on_end(int64_t index, const GeneratedText& sample) override {
    ++ends[static_cast<size_t>(index)];
    CHECK(sample.text == texts[static_cast<size_t>(index)]);
  }
  bool stop_requested() override { return --patience < 0; }
};

LanguageModel model_of(const std::string& mixer, const std::string& position = "none") {
  ModelConfig config = test::small_config();  // 23 tokens
  config.mixer = {mixer};
  config.position = position;
  config.mamba.head_dim = 4;
  LanguageModel model(config, 3);
  test::spread(model);
  return model;
}

GeneratedText one(const LanguageModel& model, const GenerateOptions& options, const std::string& prompt = "abcab",
                  const Tokenizer& tokenizer = Letters()) {
  Listener listener;
  const std::vector<GeneratedText> all = generate(model, tokenizer, prompt, options, listener);
  REQUIRE(all.size() == 1);
  CHECK(listener.ends[0] == 1);
  return all[0];
}

/// Checks greedy tokens against the logits of the whole text before each, worked out without a cache.
void check_greedy(const LanguageModel& model, const GeneratedText& got, double penalty) {
  const NoGrad no_grad;
  const int64_t vocab = model.config().vocab_size;
  std::vector<int32_t> text = Letters().encode("abcab");
  for (const int32_t token : got.tokens) {
    const auto length = static_cast<int64_t>(text.size());
    const std::vector<float> logits = model.logits(from_values(text, {1, length})).to_vector<float>();
    std::vector<double> scores(logits.end() - vocab, logits.end());
    scores.resize(21);  // those that decode
    for (size_t id = 0; id < scores.size(); ++id) {
      const bool before = std::find(text.begin(), text.end(), static_cast<int32_t>(id)) != text.end();
      if (before) scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
    }
    CHECK(scores[static_cast<size_t>(token)] >= *std::max_element(scores.begin(), scores.end()) - 1e-4);
    text.push_back(token);
  }
}

}  // namespace

TEST_CASE("generate: greedy tokens are the likeliest by the logits of the whole text, for every mixer") {
  const test::Threads single(1);
  for (const std::string& mixer : mixer_names()) {
    CAPTURE(mixer);
    const LanguageModel model = model_of(mixer);
    const GeneratedText got = one(model, {.tokens = 9, .sampling = {.temperature = 0}});
    REQUIRE(got.tokens.size() == 9);
    CHECK(got.end == SampleEnd::length);
    check_greedy(model, got, 1);
  }
}

TEST_CASE("generate: a sample is the same alone and in a batch; numbers and seeds tell samples apart") {
  const test::Threads single(1);
  const LanguageModel model = model_of("cat");
  const GenerateOptions options{.tokens = 40, .count = 4, .first = 2};
  Listener listener;
  const std::vector<GeneratedText> batch = generate(model, Letters(), "hello", options, listener);
  REQUIRE(batch.size() == 4);
  for (size_t i = 0; i < batch.size(); ++i) {
    CHECK(batch[i].number == 2 + static_cast<int64_t>(i));
    CHECK(listener.texts[i] == batch[i].text);
    const GeneratedText alone = one(model, {.tokens = 40, .first = batch[i].number}, "hello");
    CHECK(alone.tokens == batch[i].tokens);
    for (size_t j = 0; j < i; ++j) CHECK(batch[i].tokens != batch[j].tokens);
  }
  CHECK(one(model, {.tokens = 40, .first = 2, .seed = 124}, "hello").tokens != batch[0].tokens);
  CHECK(Letters().decode(batch[0].tokens) == batch[0].text);
}

TEST_CASE("generate: samples of a batch end each by itself, before a stop string or the end of text") {
  const test::Threads single(1);
  const LanguageModel model = model_of("attention");
  Listener plain;
  const GenerateOptions options{.tokens = 60, .count = 3};
  const auto whole = generate(model, Letters(), "abc", options, plain);
  const std::string stop = whole[1].text.substr(20, 3);
  GenerateOptions stopping = options;
  stopping.stop = {"not there at all", stop};
  Listener listener;
  const auto cut = generate(model, Letters(), "abc", stopping, listener);
  for (size_t i = 0; i < cut.size(); ++i) {
    const size_t place = whole[i].text.find(stop);
    CHECK(cut[i].text == whole[i].text.substr(0, place));
    CHECK(cut[i].end == (place == std::string::npos ? SampleEnd::length : SampleEnd::stop_string));
    CHECK(listener.ends[i] == 1);
    if (place != std::string::npos) CHECK(cut[i].tokens.size() == place + 3);
  }
  CHECK(cut[1].end == SampleEnd::stop_string);

  const int32_t end = whole[0].tokens[10];
  const auto first = std::find(whole[0].tokens.begin(), whole[0].tokens.end(), end) - whole[0].tokens.begin();
  const GeneratedText ended = one(model, {.tokens = 60}, "abc", Letters(end));
  CHECK(ended.end == SampleEnd::end_of_text);
  CHECK(ended.text == whole[0].text.substr(0, static_cast<size_t>(first)));
  CHECK(ended.tokens.size() == static_cast<size_t>(first) + 1);
  const GeneratedText on = one(model, {.tokens = 60, .stop_at_end_of_text = false}, "abc", Letters(end));
  CHECK(on.tokens == whole[0].tokens);
}

TEST_CASE("generate: an interrupted sample keeps what it has, with what was held back") {
  const test::Threads single(1);
  const LanguageModel model = model_of("mamba");
  const GeneratedText whole = one(model, {.tokens = 12});
  Listener listener;
  listener.patience = 7;
  const std::string longer = whole.text.substr(5, 2) + "zz";
  const auto cut = generate(model, Letters(), "abcab", {.tokens = 12, .stop = {longer}}, listener);
  CHECK(cut[0].end == SampleEnd::interrupted);
  CHECK(cut[0].text == whole.text.substr(0, 7));
  CHECK(listener.texts[0] == cut[0].text);
}

TEST_CASE("generate: past the training length; learned positions slide, or are an error") {
  const test::Threads single(1);
  for (const char* position : {"none", "rope"})  // max_seq_len is 16
    CHECK(one(model_of("cat", position), {.tokens = 50, .slide = false}).tokens.size() == 50);
  const LanguageModel learned = model_of("attention", "learned");
  const GeneratedText slid = one(learned, {.tokens = 50});
  CHECK(slid.tokens.size() == 50);
  // Behind position 16 the model sees the last 8 tokens: token 12 is drawn from those before it alone.
  const std::string text = "abcab" + slid.text;
  const GeneratedText greedy = one(learned, {.tokens = 20, .sampling = {.temperature = 0}});
  const GeneratedText anew =
      one(learned, {.tokens = 8, .sampling = {.temperature = 0}}, ("abcab" + greedy.text).substr(17 - 8, 8));
  CHECK(greedy.text.substr(12, 8) == anew.text);
  CHECK_THROWS_WITH_AS(one(learned, {.tokens = 13, .slide = false}),
                       doctest::Contains("at most model.max_seq_len = 16 tokens"), ConfigError);
  CHECK(one(learned, {.tokens = 12, .slide = false}).tokens.size() == 12);
  CHECK(one(learned, {.tokens = 3}, std::string(100, 'c')).tokens.size() == 3);
}

TEST_CASE("generate: an empty prompt is the end of the text before; nothing asked is nothing done") {
  const test::Threads single(1);
  const LanguageModel model = model_of("cat");
  CHECK(one(model, {.tokens = 5, .stop_at_end_of_text = false}, "", Letters(4)).tokens ==
        one(model, {.tokens = 5}, "e").tokens);
  CHECK_THROWS_AS(one(model, {}, ""), ConfigError);
  const GeneratedText none = one(model, {.tokens = 0});
  CHECK(none.tokens.empty());
  CHECK(none.end == SampleEnd::length);
  Listener listener;
  CHECK_THROWS_AS(generate(model, Letters(), "a", {.count = 0}, listener), ConfigError);
  CHECK_THROWS_AS(generate(model, Letters(), "a", {.sampling = {.top_p = 2}}, listener), ConfigError);
  const auto bytes = make_tokenizer("bytes");
  CHECK_THROWS_WITH_AS(generate(model, *bytes, "a", {}, listener),
                       doctest::Contains("at least the 256 tokens of the tokenizer, got 23"), ConfigError);
}

TEST_CASE("generate: a repetition penalty looks at prompt and text") {
  const test::Threads single(1);
  const LanguageModel model = model_of("cat");
  const GeneratedText got = one(model, {.tokens = 15, .sampling = {.repetition_penalty = 3, .temperature = 0}});
  check_greedy(model, got, 3);
  CHECK(got.tokens != one(model, {.tokens = 15, .sampling = {.temperature = 0}}).tokens);
}
