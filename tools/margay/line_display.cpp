#include "tools/margay/line_display.h"

#include "tools/margay/terminal.h"
#include "tools/margay/text.h"

namespace margay::cli {
namespace {

constexpr std::chrono::milliseconds kLiveInterval{100};
constexpr std::chrono::seconds kPlainInterval{10};
constexpr size_t kBarWidth = 24;
constexpr const char *kClearLine = "\r\x1b[2K", *kColour = "\x1b[36m", *kDim = "\x1b[2m", *kReset = "\x1b[0m";

}  // namespace

LineDisplay::LineDisplay(bool quiet)
    : quiet_(quiet),
      live_(output_is_terminal()),
      colour_(output_has_colour()),
      unicode_(locale_is_utf8()),
      last_(Clock::now()) {}

LineDisplay::~LineDisplay() {
  try {
    end_drawing();
  } catch (...) {  // an error is on its way already
  }
}

bool LineDisplay::due(bool event) {
  const Clock::time_point now = Clock::now();
  const Clock::duration interval = live_ ? Clock::duration(kLiveInterval) : Clock::duration(kPlainInterval);
  if (quiet_ || (!event && now - last_ < interval)) return false;
  last_ = now;
  return true;
}

void LineDisplay::show(const std::string& name, double share, const std::string& rest, const std::string& plain) {
  if (!live_) return print(plain + '\n');
  const size_t columns = output_columns();
  const bool wide = text_width(name) + kBarWidth + text_width(rest) + 2 < columns;
  print(kClearLine + (wide ? name + ' ' + bar(share) + ' ' + rest : rest.substr(0, columns > 1 ? columns - 1 : 0)));
  drawn_ = !quiet_;
}

void LineDisplay::print_line(const std::string& line) {
  end_drawing();
  print(line + '\n');
}

std::string LineDisplay::bar(double share) const {
  const auto full = static_cast<size_t>(share * static_cast<double>(kBarWidth));
  std::string done, left;
  for (size_t i = 0; i < kBarWidth; ++i) (i < full ? done : left) += unicode_ ? "━" : i < full ? "#" : "-";
  if (unicode_ && !colour_) {
    left.clear();
    for (size_t i = full; i < kBarWidth; ++i) left += "┄";
  }
  return colour_ ? kColour + done + kReset + kDim + left + kReset : done + left;
}

void LineDisplay::end_drawing() {
  if (drawn_) print("\n");
  drawn_ = false;
}

void LineDisplay::print(const std::string& text) {
  if (quiet_) return;
  try {
    print_out(text);
  } catch (const OutputClosed&) {
    quiet_ = true;  // nobody reads: the work goes on
  }
}

}  // namespace margay::cli
