#pragma once
#include <chrono>
#include <string>

namespace margay::cli {

/// Shows how some work goes: on a terminal in one line with a bar that is drawn again and again, elsewhere in plain
/// lines. Says nothing if `quiet`, and from when on nobody reads.
class LineDisplay {
 public:
  explicit LineDisplay(bool quiet);
  /// Ends the line that is being drawn.
  ~LineDisplay();
  LineDisplay(const LineDisplay&) = delete;
  LineDisplay& operator=(const LineDisplay&) = delete;

  /// Whether it is time to say something again: ten times a second on a terminal, every ten seconds elsewhere, and
  /// whenever there was an event.
  bool due(bool event);
  /// Draws "NAME ━━━━┄┄┄┄ REST", or REST alone where the terminal is narrow; elsewhere prints the plain text in a line.
  void show(const std::string& name, double share, const std::string& rest, const std::string& plain);
  /// Prints a line that stays.
  void print_line(const std::string& line);

 private:
  using Clock = std::chrono::steady_clock;

  std::string bar(double share) const;
  void print(const std::string& text);
  void end_drawing();

  bool quiet_, live_, colour_, unicode_;
  bool drawn_ = false;  // a live line is on the screen
  Clock::time_point last_;
};

}  // namespace margay::cli
