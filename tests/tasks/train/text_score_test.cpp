#include "tasks/train/text_score.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "tasks/registry.h"
#include "tests/models/small_model.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;

namespace {

/// Token t stands for t bytes; token 3 ends a text.
class Lengths final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 6; }
  size_t encode_part(std::string_view text, bool, std::vector<int32_t>&) const override { return text.size(); }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) text.append(static_cast<size_t>(token), static_cast<char>('0' + token));
    return text;
  }
  std::optional<int32_t> end_of_text() const override { return 3; }
  const std::string& json() const override { return json_; }

 private:
  std::string json_;
};

/// Three windows of four tokens of Lengths, of which some are scored.
class ThreeWindows final : public Task {
 public:
  ThreeWindows() : Task(config_of(), {6, 4}) {}
  int64_t max_labels(int64_t) const override { return 4; }
  void make(Split, int64_t index, int64_t, std::span<int32_t> inputs, std::span<int32_t> targets) const override {
    constexpr int32_t all[3][4] = {{1, 2, 3, 4}, {kIgnoredTarget, kIgnoredTarget, 5, 0}, {1, 1, 1, 3}};
    std::fill(inputs.begin(), inputs.end(), 1);
    std::copy(all[index], all[index] + 4, targets.begin());
  }

 private:
  static TaskConfig config_of() {
    TaskConfig config;
    config.seq_len = 4;
    config.test_examples = 3;
    return config;
  }
};

std::string prose(size_t bytes) {
  std::string text;
  for (int line = 0; text.size() < bytes; ++line) text += fmt::format("{} and {} are {}\n", line, line * 7, line * 8);
  return text;
}

LanguageModel byte_model() {
  ModelConfig config = test::small_config();
  config.vocab_size = 256;
  LanguageModel model(config, 5);
  test::spread(model);
  return model;
}

double nll_of(const LanguageModel& model, std::span<const int32_t> context, int32_t target) {
  const Tensor ids = from_values(context, {1, static_cast<int64_t>(context.size())});
  const std::vector<float> logits = model.logits(ids).to_vector<float>();
  const auto row = std::span(logits).last(256);
  double sum = 0;
  for (const float logit : row) sum += std::exp(static_cast<double>(logit));
  return std::log(sum) - static_cast<double>(row[static_cast<size_t>(target)]);
}

}  // namespace

TEST_CASE("text score: a sliding window scores every byte once, with the context its stride promises") {
  const test::Threads single(1);
  const NoGrad no_grad;
  const test::TempDir dir;
  const LanguageModel model = byte_model();
  TaskConfig config;
  config.name = "text";
  config.path = dir.write("prose.txt", prose(4000));
  config.seq_len = 16;
  config.test_examples = 1'000'000;
  const auto bytes = make_tokenizer("bytes");
  for (const int64_t stride : {16, 5, 1}) {
    CAPTURE(stride);
    config.stride = stride;
    const auto task = make_task(config);
    TextScore score(16, *bytes);
    const Evaluation evaluation = evaluate(model, *task, Split::test, 7, &score);

    std::vector<int32_t> part;
    REQUIRE(task->read(Split::test, [&](auto piece) { part.insert(part.end(), piece.begin(), piece.end()); }));
    const auto size = static_cast<int64_t>(part.size());
    double loss = 0;
    for (int64_t target = 1; target < size; ++target) {
      // Windows start at multiples of the stride, the last one where it ends with the part.
      const int64_t later = std::max<int64_t>(0, (target - 16 + stride - 1) / stride * stride);
      const int64_t start = target <= 16 ? 0 : std::min(later, size - 17);
      const int64_t context = target - start;
      if (target >= 16) CHECK(context > 16 - stride);
      loss += nll_of(model, std::span(part).subspan(static_cast<size_t>(start), static_cast<size_t>(context)),
                     part[static_cast<size_t>(target)]);
    }
    const TokenSum total = score.total();
    CHECK(total.tokens == size - 1);
    CHECK(total.bytes == size - 1);
    CHECK(total.loss == doctest::Approx(loss).epsilon(1e-5));
    CHECK(total.mean_loss() == doctest::Approx(evaluation.loss));
    CHECK(total.perplexity() == doctest::Approx(std::exp(evaluation.loss)));
    CHECK(total.bits_per_byte() == doctest::Approx(evaluation.loss / std::numbers::ln2));

    std::string scored, wanted(part.begin() + 1, part.end());
    read_scored_text(*task, Split::test, evaluation.examples, *bytes, [&](std::string_view t) { scored += t; });
    CHECK(scored == wanted);
  }
}

TEST_CASE("text score: bits are counted by the bytes that the tokens stand for, without the end of a text") {
  const ThreeWindows task;
  const Lengths tokenizer;
  TextScore score(4, tokenizer);
  Batch batch;
  make_batch(task, Split::test, 0, 3, 4, 1, batch);
  REQUIRE(batch.labels == 10);
  const std::vector<float> nll = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  score.on_batch(batch, nll, 3, 3);
  const TokenSum total = score.total();
  CHECK(total.tokens == 10);
  CHECK(total.bytes == 1 + 2 + 4 + 5 + 0 + 1 + 1 + 1);
  CHECK(total.loss == 1023);
  CHECK(total.bits_per_byte() == doctest::Approx(1023 / std::numbers::ln2 / 15));
  CHECK(score.by_position()[2].sum.loss == 4 + 16 + 256);
  CHECK(score.by_position()[2].sum.bytes == 5 + 1);
  CHECK(score.by_position()[1].sum.tokens == 2);

  std::string text;
  read_scored_text(task, Split::test, 3, tokenizer, [&](std::string_view piece) { text += piece; });
  CHECK(text ==
        "1224444555551"
        "11");
  CHECK_FALSE(read_text(task, Split::train, tokenizer, [](std::string_view) {}));
}

TEST_CASE("text score: ranges of positions cover a window once, with borders at powers of two") {
  for (const int64_t seq_len : {1, 2, 5, 128, 1000}) {
    const TextScore score(seq_len, Lengths());
    int64_t next = 0;
    std::vector<int64_t> firsts;
    for (const auto& [first, last, sum] : score.by_position()) {
      CHECK(first == next);
      CHECK(last >= first);
      CHECK(last <= first * 5 / 4);
      firsts.push_back(first);
      next = last + 1;
    }
    CHECK(next == seq_len);
    for (int64_t power = 1; power < seq_len; power *= 2)
      CHECK(std::find(firsts.begin(), firsts.end(), power) != firsts.end());
  }
}

TEST_CASE("text score: CSV and figure leave out what was not scored") {
  const Lengths tokenizer;
  TextScore score(4, tokenizer);
  CHECK(std::isnan(score.total().bits_per_byte()));
  CHECK(to_csv(score.by_position()) == "first,last,tokens,bytes,loss,perplexity,bits_per_byte\n");
  CHECK(to_svg(position_figure(score.by_position(), "", 2)).find("nan") == std::string::npos);
  Batch batch;
  make_batch(ThreeWindows(), Split::test, 1, 1, 4, 1, batch);
  score.on_batch(batch, std::vector<float>{static_cast<float>(std::numbers::ln2), 0}, 1, 1);
  CHECK(to_csv(score.by_position()) ==
        "first,last,tokens,bytes,loss,perplexity,bits_per_byte\n"
        "2,2,1,5,0.693147,2.000000,0.200000\n"
        "3,3,1,0,0.000000,1.000000,nan\n");
  CHECK(to_svg(position_figure(score.by_position(), "", 2)).find("nan") == std::string::npos);
  CHECK(to_svg(position_figure(score.by_position(), "", 2)).find("trained at this length") != std::string::npos);
}
