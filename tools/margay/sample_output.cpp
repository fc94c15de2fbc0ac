#include "tools/margay/sample_output.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"

namespace margay::cli {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Whether a terminal might take a character for a command: C0 but line end and tab, DEL, and C1 (U+0080 ... U+009F).
bool is_control(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return (byte(0) < 0x20 && byte(0) != '\n' && byte(0) != '\t') || byte(0) == 0x7f;
  return character.size() == 2 && byte(0) == 0xC2 && byte(1) < 0xA0;
}

}  // namespace

std::string TerminalText::push(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    std::string done = stream_.push(static_cast<unsigned char>(c));
    for (; done.size() > kReplacement.size() && done.starts_with(kReplacement); done.erase(0, kReplacement.size()))
      text += kReplacement;  // what was broken, before the next character
    if (!is_control(done)) text += done;
  }
  return text;
}

TextSamples::TextSamples(std::string prompt, int64_t count, int64_t first, bool raw)
    : prompt_(std::move(prompt)),
      first_(first),
      terminal_(output_is_terminal()),
      plain_(raw || !terminal_),
      waiting_(static_cast<size_t>(count)),
      ended_(static_cast<size_t>(count), false) {
  begin_sample();
}

void TextSamples::begin_sample() {
  if (ended_.size() > 1) {
    const std::string gap = current_ == 0 ? "" : line_ended_ ? "\n" : "\n\n";
    print_out(fmt::format("{}==> sample {} <==\n", gap, first_ + static_cast<int64_t>(current_)));
  }
  text_ = {};
  print(prompt_);
}

void TextSamples::print(std::string_view bytes) {
  const std::string text = plain_ ? std::string(bytes) : text_.push(bytes);
  if (text.empty()) return;
  print_out(text);
  line_ended_ = text.back() == '\n';
}

void TextSamples::end_sample() {
  const std::string rest = plain_ ? "" : text_.finish();
  if (!rest.empty()) print_out(rest);
  line_ended_ = line_ended_ && rest.empty();
}

void TextSamples::on_text(int64_t index, std::string_view bytes) {
  if (static_cast<size_t>(index) == current_) return print(bytes);
  waiting_[static_cast<size_t>(index)] += bytes;
}

void TextSamples::on_end(int64_t index, const GeneratedText&) {
  ended_[static_cast<size_t>(index)] = true;
  while (current_ < ended_.size() && ended_[current_]) {
    end_sample();
    if (++current_ == ended_.size()) break;
    begin_sample();
    print(std::exchange(waiting_[current_], {}));
  }
  if (current_ == ended_.size() && (terminal_ || ended_.size() > 1)) print_out("\n");
}

bool TextSamples::stop_requested() { return stop_signal() != 0; }

void JsonSamples::on_end(int64_t index, const GeneratedText& sample) {
  const auto place = static_cast<size_t>(index);
  if (lines_.size() <= place) lines_.resize(place + 1);
  lines_[place] =
      nlohmann::ordered_json{{"sample", sample.number},         {"prompt", valid_utf8(prompt_)},
                             {"text", valid_utf8(sample.text)}, {"tokens", sample.tokens.size()},
                             {"token_ids", sample.tokens},      {"stop_reason", to_string(sample.end)},
                             {"seconds", sample.seconds},       {"tokens_per_second", sample.tokens_per_second()}}
          .dump() +
      '\n';
  for (; printed_ < lines_.size() && !lines_[printed_].empty(); ++printed_) print_out(lines_[printed_]);
}

bool JsonSamples::stop_requested() { return stop_signal() != 0; }

}  // namespace margay::cli
