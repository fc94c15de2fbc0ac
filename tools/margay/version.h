#pragma once
#include <string_view>

namespace margay::cli {

inline constexpr std::string_view kVersion = "margay 0.1.0";

}  // namespace margay::cli
