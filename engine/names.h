#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace margay {

/// The name with the smallest edit distance (insertions, deletions, substitutions, swaps of neighbours) to `wanted`,
/// to suggest where an unknown one was given; the first of equals, empty where there are no names.
std::string_view nearest_name(std::string_view wanted, std::span<const std::string_view> names);

/// Text from outside in double quotes, fit for a one-line message: control characters escaped, and shortened where it
/// is longer than `longest`.
std::string quoted(std::string_view text, size_t longest = 80);

}  // namespace margay
