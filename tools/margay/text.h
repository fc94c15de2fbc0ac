#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace margay::cli {

/// 540,672
std::string with_commas(int64_t count);
/// 640 k, 1.28 M: three digits.
std::string short_count(double count);
/// 2.1 MiB
std::string short_bytes(double bytes);
/// 0:07, 12:30, 3:04:05
std::string duration(double seconds);
/// 99.8 %
std::string percent(double share);
/// Characters of UTF-8 text.
size_t text_width(std::string_view text);

/// Rows in columns as wide as their widest cell, two spaces apart; all but the first column flush right if `numbers`.
std::string table(const std::vector<std::vector<std::string>>& rows, bool numbers = false);

}  // namespace margay::cli
