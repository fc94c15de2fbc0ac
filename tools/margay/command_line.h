#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/types.h"

namespace margay::cli {

using Arguments = std::vector<std::string>;

/// The arguments and options of one verb: what they are called, where they go, and what the help says about them.
class CommandLine {
 public:
  /// `summary` is a sentence.
  CommandLine(std::string verb, std::string summary);

  /// One argument by position, as "CHECKPOINT".
  void argument(const std::string& name, std::string& value, const std::string& help);
  /// All further arguments by position, as "key=value"; at least `least`.
  void arguments(const std::string& name, std::vector<std::string>& values, const std::string& help, size_t least = 0);

  /// An option that is left out leaves its value as it is. `name` is "--out DIR".
  void option(const std::string& name, std::string& value, const std::string& help, bool required = false);
  /// `value` stays empty where the option is left out.
  void option(const std::string& name, std::optional<std::string>& value, const std::string& help);
  /// An option that may be given several times.
  void option(const std::string& name, std::vector<std::string>& values, const std::string& help);
  void option(const std::string& name, int64_t& value, int64_t least, const std::string& help, bool required = false);
  void option(const std::string& name, double& value, double least, double most, const std::string& help);
  void flag(const std::string& name, bool& value, const std::string& help);
  /// --seed N: `set` is called with it. All 64-bit numbers, with or without sign, are seeds of their own.
  void seed(std::function<void(int64_t)> set, const std::string& help);
  /// --device and --threads: parse() puts the threads into effect.
  void device_and_threads(Device& device);
  void threads();

  /// A whole command and what it does.
  void example(const std::string& command, const std::string& help);

  /// False where the help was asked for and printed. Throws ConfigError for what is missing, unknown (with the nearest
  /// option) or no number.
  bool parse(const Arguments& arguments) const;
  std::string help() const;

 private:
  struct Entry {
    std::string name;          // "--out" or "CHECKPOINT"
    std::string operand = {};  // "DIR"; empty for flags and arguments
    std::string help = {};
    std::function<void(const std::string&)> set = {};
    bool required = false;
    bool repeated = false;
  };
  struct Rest {
    std::string name, help;
    std::vector<std::string>* values;
    size_t least;
  };

  void add_option(const std::string& name, const std::string& help, bool required,
                  std::function<void(const std::string&)> set);
  void set_arguments(const std::vector<std::string>& words) const;
  std::string usage() const;
  [[noreturn]] void fail_unknown(const std::string& word) const;

  std::string verb_, summary_;
  std::vector<Entry> arguments_, options_;
  std::vector<std::pair<std::string, std::string>> examples_;
  std::optional<Rest> rest_;
};

}  // namespace margay::cli
