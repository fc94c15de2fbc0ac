#pragma once
#include <string>
#include <vector>

#include "tasks/generate/generator.h"
#include "tasks/utf8.h"

namespace margay::cli {

/// Makes bytes from a model fit for a terminal: whole characters only, U+FFFD for what is no UTF-8, and of the control
/// characters none but line ends and tabs.
class TerminalText {
 public:
  std::string push(std::string_view bytes);
  std::string finish() { return stream_.finish(); }

 private:
  Utf8Stream stream_;
};

/// Prints samples one below the other: the first as it grows, the next when the one before is complete. Several have a
/// line "==> sample N <==" above each. Bytes go out as they are to files, and where `raw`.
class TextSamples final : public GenerateObserver {
 public:
  TextSamples(std::string prompt, int64_t count, int64_t first, bool raw);

  void on_text(int64_t index, std::string_view bytes) override;
  void on_end(int64_t index, const GeneratedText& sample) override;
  bool stop_requested() override;

 private:
  void begin_sample();
  void print(std::string_view bytes);
  void end_sample();

  std::string prompt_;
  int64_t first_;
  bool terminal_, plain_;  // plain: bytes go out as they are
  size_t current_ = 0;     // the sample that is being printed
  std::vector<std::string> waiting_;
  std::vector<bool> ended_;
  TerminalText text_;
  bool line_ended_ = true;  // what was printed last ends with a line end
};

/// Prints each sample as one JSON object a line, in order, as soon as it and all before it are complete.
class JsonSamples final : public GenerateObserver {
 public:
  explicit JsonSamples(std::string prompt) : prompt_(std::move(prompt)) {}

  void on_end(int64_t index, const GeneratedText& sample) override;
  bool stop_requested() override;

 private:
  std::string prompt_;
  size_t printed_ = 0;
  std::vector<std::string> lines_;  // by index; empty where the sample still grows
};

}  // namespace margay::cli
