#include "tasks/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <functional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "engine/error.h"
#include "engine/names.h"
#include "tasks/utf8.h"

// Some malformed text, as "[[=", fails an assertion of toml++ 3.3 that nothing depends on: the parser goes on to report
// it. Without NDEBUG the assertions are ours to define; with it some compilers would be told to assume that they hold.
#undef NDEBUG
#define TOML_ASSERT(condition) static_assert(true)
#include <toml++/toml.h>

namespace margay {
namespace {

constexpr size_t kMostBytes = 64 * 1024;  // all keys together need about 2 kB
/// toml++ makes a nested table of every dot of a dotted key, and destroys them recursively.
constexpr std::ptrdiff_t kMostDots = 1000;

/// toml++ 3.3 reaches undefined behaviour where a character like U+00E9 stands outside a string. So it is given each
/// byte beyond ASCII as one character of a private range, U+E080 ... U+E0FF, and `revealed` turns its texts back.
std::string disguised(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      result += c;
    } else {
      result += {'\xee', static_cast<char>(0x82 | (byte >> 6 & 1)), static_cast<char>(0x80 | (byte & 0x3f))};
    }
  }
  return result;
}

std::string revealed(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text.size() - at >= 3 && text[at] == '\xee' && (text[at + 1] & 0xfe) == 0x82) {
      result += static_cast<char>(0x80 | (text[at + 1] & 1) << 6 | (text[at + 2] & 0x3f));
      at += 2;
    } else {
      result += text[at];
    }
  }
  return result;
}

/// Parses text, with everything that toml++ would take badly refused before. Throws ConfigError.
toml::table parse_toml(std::string_view text, std::string_view source) {
  if (text.size() > kMostBytes) {
    throw ConfigError(fmt::format("{}: a configuration must be at most {} bytes, got more", source, kMostBytes));
  }
  if (std::count(text.begin(), text.end(), '.') > kMostDots) {
    throw ConfigError(fmt::format("{}: a configuration must have at most {} dots, got more", source, kMostDots));
  }
  if (const std::string valid = valid_utf8(text); valid != text) {
    const auto bad = std::mismatch(text.begin(), text.end(), valid.begin(), valid.end()).first;
    throw ConfigError(
        fmt::format("{}:{}: a configuration must be UTF-8 text", source, 1 + std::count(text.begin(), bad, '\n')));
  }
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  try {
    return toml::parse(disguised(text));
  } catch (const toml::parse_error& error) {
    std::string what = revealed(error.description());  // may repeat a piece of the text
    std::replace_if(
        what.begin(), what.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
    throw ConfigError(fmt::format("{}:{}: {}", source, error.source().begin.line, what));
  }
}

std::string describe(const toml::node& node) {
  if (const auto* text = node.as_string()) return "the string " + quoted(revealed(text->get()));
  if (const auto* integer = node.as_integer()) return fmt::format("the integer {}", integer->get());
  if (const auto* real = node.as_floating_point()) return fmt::format("the number {}", real->get());
  if (const auto* boolean = node.as_boolean()) return boolean->get() ? "true" : "false";
  if (const auto* array = node.as_array()) return fmt::format("a list of {}", array->size());
  return node.is_table() ? "a table" : "a date or time";
}

bool assign(const toml::node& node, bool& field) {
  const auto value = node.value_exact<bool>();
  if (value) field = *value;
  return value.has_value();
}

bool assign(const toml::node& node, int64_t& field) {
  const auto value = node.value_exact<int64_t>();
  if (value) field = *value;
  return value.has_value();
}

bool assign(const toml::node& node, double& field) {
  if (!node.is_number()) return false;
  field = node.is_integer() ? static_cast<double>(node.as_integer()->get()) : node.as_floating_point()->get();
  return true;
}

bool assign(const toml::node& node, std::string& field) {
  const auto value = node.value_exact<std::string_view>();
  if (value) field = revealed(*value);
  return value.has_value();
}

template <class T>
bool assign(const toml::node& node, std::vector<T>& field) {
  const toml::array* array = node.as_array();
  std::vector<T> values(array ? array->size() : 1);
  if (array) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (!assign((*array)[i], values[i])) return false;
    }
  } else if (!std::is_same_v<T, std::string> || !assign(node, values.front())) {
    return false;
  }
  field = std::move(values);
  return true;
}

bool assign(const toml::node& node, std::array<double, 2>& field) {
  const toml::array* array = node.as_array();
  return array && array->size() == 2 && assign((*array)[0], field[0]) && assign((*array)[1], field[1]);
}

/// "model.cat" of "model.cat.conv_width".
std::string_view table_of(std::string_view key) { return key.substr(0, key.rfind('.')); }
std::string_view leaf_of(std::string_view key) { return key.substr(key.rfind('.') + 1); }

/// Fills a configuration from parsed TOML.
class Reader {
 public:
  /// `place` gives the start of a message about a node.
  Reader(Config& config, std::function<std::string(const toml::node&)> place)
      : keys_(keys_of(config)), place_(std::move(place)) {
    for (const ConfigKey& key : keys_) {
      for (std::string_view table = table_of(key.name);; table = table_of(table)) {
        if (std::find(tables_.begin(), tables_.end(), table) == tables_.end()) tables_.push_back(table);
        if (table.find('.') == std::string_view::npos) break;
      }
    }
  }

  void read(const toml::table& table, const std::string& prefix = "") const {
    for (const auto& [name, node] : table) read(prefix + revealed(name.str()), node);
  }

  /// Reads one key, or a whole table, of a dotted name.
  void read(const std::string& name, const toml::node& node) const {
    const auto key = std::find_if(keys_.begin(), keys_.end(), [&](const ConfigKey& k) { return k.name == name; });
    if (key != keys_.end()) return read_value(*key, node);
    if (std::find(tables_.begin(), tables_.end(), name) == tables_.end()) fail_unknown(name, node);
    if (!node.is_table()) fail(node, fmt::format("{} must be a table, got {}", name, describe(node)));
    read(*node.as_table(), name + '.');
  }

 private:
  void read_value(const ConfigKey& key, const toml::node& node) const {
    if (!std::visit([&](auto* field) { return assign(node, *field); }, key.field)) {
      fail(node, fmt::format("{} must be {}, got {}", key.name, key.wanted(), describe(node)));
    }
    try {
      key.check();
    } catch (const ConfigError& error) {
      fail(node, error.what());
    }
  }

  [[noreturn]] void fail(const toml::node& node, const std::string& message) const {
    throw ConfigError(place_(node) + message);
  }

  /// A name without its table is compared with the names inside all tables.
  [[noreturn]] void fail_unknown(const std::string& name, const toml::node& node) const {
    if (node.is_table()) {
      fail(node, fmt::format("unknown table {}; the nearest is \"{}\"", quoted(name), nearest_name(name, tables_)));
    }
    const bool bare = name.find('.') == std::string::npos;
    std::vector<std::string_view> names;
    for (const ConfigKey& key : keys_) names.push_back(bare ? leaf_of(key.name) : key.name);
    const auto nearest = std::find(names.begin(), names.end(), nearest_name(name, names)) - names.begin();
    fail(node, fmt::format("unknown key {}; the nearest is \"{}\"", quoted(name), keys_[nearest].name));
  }

  std::vector<ConfigKey> keys_;
  std::vector<std::string_view> tables_;
  std::function<std::string(const toml::node&)> place_;
};

/// The value of an override, under the key "value": TOML if it parses as exactly one value, else a bare string.
toml::table parse_value(std::string_view text, std::string_view source) {
  try {
    toml::table table = parse_toml(fmt::format("value = {}", text), source);
    if (table.size() == 1) return table;
  } catch (const ConfigError&) {  // a bare string
  }
  return parse_toml(fmt::format("value = {}", toml_string(text)), source);
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string_view::npos ? std::string_view() : text.substr(first, last - first + 1);
}

}  // namespace

Config parse_config(std::string_view text, std::string_view source) {
  Config config;
  const auto place = [&](const toml::node& node) { return fmt::format("{}:{}: ", source, node.source().begin.line); };
  Reader(config, place).read(parse_toml(text, source));
  return config;
}

Config load_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw DataError(
        fmt::format("configuration {} cannot be opened: {}", quoted(path), std::generic_category().message(errno)));
  }
  std::string text(kMostBytes + 1, '\0');  // one byte more than is allowed
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) throw DataError(fmt::format("configuration {} cannot be read", quoted(path)));
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_config(text, path);
}

void apply_override(Config& config, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  const std::string name(trimmed(assignment.substr(0, equals)));
  if (equals == std::string_view::npos || name.empty()) {
    throw ConfigError(
        fmt::format("an override must be key=value, as in model.d_model=128, got {}", quoted(assignment)));
  }
  const toml::table parsed = parse_value(trimmed(assignment.substr(equals + 1)), quoted(name));
  Config changed = config;
  Reader(changed, [](const toml::node&) { return std::string(); }).read(name, *parsed.get("value"));
  config = std::move(changed);
}

}  // namespace margay
