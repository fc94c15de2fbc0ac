#include "tools/margay/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace margay::cli {
namespace {

std::string scaled(double value, double unit, const std::array<const char*, 5>& names) {
  size_t scale = 0;
  while (std::abs(value) >= 0.9995 * unit && scale + 1 < names.size()) {
    value /= unit;
    ++scale;
  }
  const int decimals = scale == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, decimals, names[scale]);
}

}  // namespace

std::string with_commas(int64_t count) {
  std::string text = fmt::format("{}", count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t at = text.size(); at > first + 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string short_count(double count) { return scaled(count, 1000, {"", " k", " M", " G", " T"}); }
std::string short_bytes(double bytes) { return scaled(bytes, 1024, {" B", " KiB", " MiB", " GiB", " TiB"}); }

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::min(std::max(0.0, std::round(seconds)), 1e12));
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

size_t text_width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string table(const std::vector<std::vector<std::string>>& rows, bool numbers) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], text_width(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string gap(widths[i] - text_width(row[i]), ' ');
      line += (i == 0 ? "" : "  ") + (numbers && i > 0 ? gap + row[i] : row[i] + gap);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

}  // namespace margay::cli
