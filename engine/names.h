#pragma once
#include <span>
#include <string>
#include <string_view>

namespace margay {

/// The name with the smallest edit distance (insertions, deletions, substitutions, swaps of neighbours) to `wanted`,
/// to suggest where an unknown one was given; the first of equals, empty where there are no names.
std::string_view nearest_name(std::string_view wanted, std::span<const std::string_view> names);

/// Text from outside in double quotes, fit for a one-line message: control characters escaped, long text shortened.
std::string quoted(std::string_view text);

}  // namespace margay
