#include "tasks/train/text_score.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tasks/tokenizer/tokenizer_json.h"

namespace margay {
namespace {

constexpr double kRangesToTheDouble = 4;

double ratio(double sum, int64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
}

/// Bytes of the text that tokens stand for, without the token that ends a text.
std::string text_of(const Tokenizer& tokenizer, std::vector<int32_t>& tokens) {
  if (const auto end = tokenizer.end_of_text()) std::erase(tokens, *end);
  return tokenizer.decode(tokens);
}

}  // namespace

double TokenSum::mean_loss() const { return ratio(loss, tokens); }
double TokenSum::perplexity() const { return std::exp(mean_loss()); }
double TokenSum::bits_per_byte() const { return ratio(loss / std::numbers::ln2, bytes); }

TextScore::TextScore(int64_t seq_len, const Tokenizer& tokenizer) {
  std::vector<int32_t> one(1);
  for (int32_t token = 0; token < tokenizer.vocab_size(); ++token) {
    one.assign(1, token);
    token_bytes_.push_back(static_cast<int32_t>(text_of(tokenizer, one).size()));
  }
  double edge = 1;
  for (int64_t first = 0; first < seq_len;) {
    int64_t next = first;
    for (; next <= first; edge *= std::exp2(1 / kRangesToTheDouble)) next = std::llround(std::ceil(edge - 1e-6));
    next = std::min(next, seq_len);
    for (int64_t position = first; position < next; ++position)
      place_of_.push_back(static_cast<int32_t>(by_position_.size()));
    by_position_.push_back({first, next - 1});
    first = next;
  }
}

void TextScore::on_batch(const Batch& batch, std::span<const float> nll, int64_t, int64_t) {
  for (size_t i = 0; i < nll.size(); ++i) {
    const int32_t row = batch.rows[i];
    const auto token = static_cast<size_t>(batch.targets[row]);
    TokenSum& sum = by_position_[place_of_[row % batch.columns]].sum;
    ++sum.tokens;
    sum.bytes += token < token_bytes_.size() ? token_bytes_[token] : 0;
    sum.loss += nll[i];
  }
}

TokenSum TextScore::total() const {
  TokenSum total;
  for (const PositionSum& range : by_position_) {
    total.tokens += range.sum.tokens;
    total.bytes += range.sum.bytes;
    total.loss += range.sum.loss;
  }
  return total;
}

std::string to_csv(const std::vector<PositionSum>& by_position) {
  std::string csv = "first,last,tokens,bytes,loss,perplexity,bits_per_byte\n";
  for (const auto& [first, last, sum] : by_position) {
    if (sum.tokens == 0) continue;
    csv += fmt::format("{},{},{},{},{:.6f},{:.6f},{:.6f}\n", first, last, sum.tokens, sum.bytes, sum.mean_loss(),
                       sum.perplexity(), sum.bits_per_byte());
  }
  return csv;
}

Figure position_figure(const std::vector<PositionSum>& by_position, const std::string& subtitle,
                       int64_t trained_seq_len) {
  Panel panel{.title = "",
              .x = {.label = "tokens of the window that the model has seen", .log = true, .tight = true, .low = 1},
              .y = {.label = "bits per byte"},
              .series = {{.style = Series::Style::line_and_points}}};
  Series& line = panel.series.front();
  for (const auto& [first, last, sum] : by_position) {
    if (sum.tokens == 0) continue;
    line.x.push_back(std::sqrt(static_cast<double>(first + 1) * static_cast<double>(last + 1)));
    line.y.push_back(sum.bits_per_byte());
  }
  const double longest = std::max(2.0, by_position.empty() ? 0 : static_cast<double>(by_position.back().last + 1));
  panel.x.high = longest;
  for (double tick = 1; tick <= longest; tick *= 2) panel.x.ticks.push_back(tick);
  if (!line.x.empty() && line.x.back() > static_cast<double>(trained_seq_len)) {
    const auto [low, high] = std::minmax_element(line.y.begin(), line.y.end());
    const auto length = static_cast<double>(trained_seq_len);
    panel.series.push_back({.name = "trained at this length",
                            .x = {length, length},
                            .y = {*low, *high},
                            .colour = 6,
                            .style = Series::Style::dashed_line});
  }
  return {"Loss by position in the window", subtitle, {panel}};
}

std::unique_ptr<Tokenizer> tokenizer_of(const Task& task) {
  const std::string& json = task.tokenizer_json();
  return json.empty() ? make_tokenizer("bytes") : parse_tokenizer(json, "the text's tokenizer.json");
}

void read_scored_text(const Task& task, Split split, int64_t examples, const Tokenizer& tokenizer,
                      const std::function<void(std::string_view)>& take) {
  const int64_t seq_len = task.config().seq_len;
  const auto columns = static_cast<size_t>(task.columns(seq_len));
  std::vector<int32_t> inputs(columns), targets(columns);
  for (int64_t example = 0; example < examples; ++example) {
    targets.resize(columns);
    task.make(split, example, seq_len, inputs, targets);
    std::erase(targets, kIgnoredTarget);
    take(text_of(tokenizer, targets));
  }
}

bool read_text(const Task& task, Split split, const Tokenizer& tokenizer,
               const std::function<void(std::string_view)>& take) {
  std::vector<int32_t> tokens;
  return task.read(split, [&](std::span<const int32_t> piece) {
    tokens.assign(piece.begin(), piece.end());
    take(text_of(tokenizer, tokens));
  });
}

}  // namespace margay
