#pragma once
#include <span>
#include <string_view>

#include "tools/margay/command_line.h"

namespace margay::cli {

/// What `margay NAME ...` does: one constant in the verb's file, listed in main.cpp.
struct Verb {
  std::string_view name;
  std::string_view summary;  ///< for the list of verbs
  /// Returns the exit code; errors are thrown.
  int (*run)(const Arguments& arguments);
};

}  // namespace margay::cli
