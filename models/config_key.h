#pragma once
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace margay {

/// A field of a config struct, by address. A list of strings may be written as one string.
using ConfigField = std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                                 std::vector<int64_t>*, std::array<double, 2>*>;

/// What a field may hold beside its type. Each member narrows the fields it fits.
struct ConfigRule {
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  std::vector<std::string_view> choices = {};  ///< strings: one of these; empty = any text
  std::string_view letters = {};               ///< strings: some of these letters, each at most once
  double low = -kInfinity, high = kInfinity;   ///< numbers, and each number of a list; always finite
  bool above_low = false, below_high = false;  ///< the bound itself is not allowed
};

/// Integers from `low` to `high`, both at most 2^53 in size. The default is beyond any count of steps or examples, and
/// small enough that its product with a batch's size fits 63 bits.
ConfigRule whole(int64_t low, int64_t high = int64_t{1} << 40);
/// Finite numbers in [low, high], in [low, high), and in (low, high).
ConfigRule real(double low, double high = ConfigRule::kInfinity);
ConfigRule real_below(double low, double high);
ConfigRule real_between(double low, double high = ConfigRule::kInfinity);
/// One of these strings.
ConfigRule one_of(std::vector<std::string_view> choices);

/// One configuration key: the single description that reading, writing, overriding and checking it go by.
struct ConfigKey {
  std::string_view name;  ///< dotted, as in "model.cat.conv_width"
  ConfigField field;
  ConfigRule rule = {};

  /// What the key takes, for messages: "an integer from 1 to 64", "one of "none", "rope"".
  std::string wanted() const;
  /// The value as TOML: parsing it gives the same bits again.
  std::string value() const;
  /// Throws ConfigError "key must be X, got Y" where the value breaks the rule.
  void check() const;
};

/// Text as a TOML basic string.
std::string toml_string(std::string_view text);

}  // namespace margay
