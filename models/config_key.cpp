#include "models/config_key.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {
namespace {

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

std::string toml_real(double value) {
  std::string text = fmt::format("{}", value);  // the shortest text that reads back to the same bits
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::string toml_list(const auto& values, const auto& format) {
  std::vector<std::string> texts;
  texts.reserve(values.size());
  for (const auto& value : values) texts.push_back(format(value));
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

bool in_range(const ConfigRule& rule, double value) {
  return std::isfinite(value) && (rule.above_low ? value > rule.low : value >= rule.low) &&
         (rule.below_high ? value < rule.high : value <= rule.high);
}

bool fits(const ConfigRule& rule, const std::string& text) {
  if (text.find('\0') != std::string::npos) return false;
  if (!rule.choices.empty()) return std::find(rule.choices.begin(), rule.choices.end(), text) != rule.choices.end();
  if (rule.letters.empty()) return true;
  return std::all_of(text.begin(), text.end(), [&](char c) {
    return rule.letters.find(c) != std::string_view::npos && std::count(text.begin(), text.end(), c) == 1;
  });
}

std::string range_text(const ConfigRule& rule, std::string_view kind) {
  if (rule.low == -ConfigRule::kInfinity) return std::string(kind);
  const std::string_view above = rule.above_low ? "above" : "of at least";
  if (rule.high == ConfigRule::kInfinity) return fmt::format("{} {} {}", kind, above, rule.low);
  return fmt::format("{} in {}{}, {}{}", kind, rule.above_low ? '(' : '[', rule.low, rule.high,
                     rule.below_high ? ')' : ']');
}

std::string text_rule(const ConfigRule& rule) {
  if (!rule.letters.empty()) return fmt::format("a string of letters from \"{}\", each at most once", rule.letters);
  if (rule.choices.empty()) return "a string";
  if (rule.choices.size() == 1) return fmt::format("\"{}\"", rule.choices.front());
  return fmt::format("one of \"{}\"", fmt::join(rule.choices, "\", \""));
}

}  // namespace

ConfigRule whole(int64_t low, int64_t high) {
  return {.low = static_cast<double>(low), .high = static_cast<double>(high)};
}
ConfigRule real(double low, double high) { return {.low = low, .high = high}; }
ConfigRule real_below(double low, double high) { return {.low = low, .high = high, .below_high = true}; }
ConfigRule real_between(double low, double high) {
  return {.low = low, .high = high, .above_low = true, .below_high = true};
}
ConfigRule one_of(std::vector<std::string_view> choices) { return {.choices = std::move(choices)}; }

std::string ConfigKey::wanted() const {
  return std::visit(
      Overloaded{
          [](bool*) { return std::string("true or false"); },
          [&](int64_t*) { return range_text(rule, "an integer"); },
          [&](double*) { return range_text(rule, "a number"); },
          [&](std::string*) { return text_rule(rule); },
          [](std::vector<std::string>*) { return std::string("a string or a non-empty list of strings"); },
          [&](std::vector<int64_t>*) { return "a non-empty list, each " + range_text(rule, "an integer"); },
          [&](std::array<double, 2>*) { return "two numbers, each " + range_text(rule, "a number"); },
      },
      field);
}

std::string ConfigKey::value() const {
  const auto integer = [](int64_t value) { return std::to_string(value); };
  return std::visit(Overloaded{
                        [](const bool* value) { return std::string(*value ? "true" : "false"); },
                        [&](const int64_t* value) { return integer(*value); },
                        [](const double* value) { return toml_real(*value); },
                        [](const std::string* value) { return toml_string(*value); },
                        [](const std::vector<std::string>* value) {
                          return value->size() == 1 ? toml_string(value->front()) : toml_list(*value, toml_string);
                        },
                        [&](const std::vector<int64_t>* value) { return toml_list(*value, integer); },
                        [](const std::array<double, 2>* value) { return toml_list(*value, toml_real); },
                    },
                    field);
}

void ConfigKey::check() const {
  const auto number = [&](auto value) { return in_range(rule, static_cast<double>(value)); };
  const auto text = [&](const std::string& value) { return fits(rule, value); };
  const auto every = [](const auto& values, const auto& fits_rule) {
    return !values.empty() && std::all_of(values.begin(), values.end(), fits_rule);
  };
  const bool ok = std::visit(Overloaded{
                                 [](const bool*) { return true; },
                                 [&](const int64_t* value) { return number(*value); },
                                 [&](const double* value) { return number(*value); },
                                 [&](const std::string* value) { return text(*value); },
                                 [&](const std::vector<std::string>* value) { return every(*value, text); },
                                 [&](const std::vector<int64_t>* value) { return every(*value, number); },
                                 [&](const std::array<double, 2>* value) { return every(*value, number); },
                             },
                             field);
  if (ok) return;
  std::string_view nearest;
  std::string got = value();
  if (const auto* string = std::get_if<std::string*>(&field)) {
    got = quoted(**string);
    nearest = nearest_name(**string, rule.choices);
  }
  throw ConfigError(fmt::format("{} must be {}, got {}{}", name, wanted(), got,
                                rule.choices.size() > 1 ? fmt::format("; the nearest is \"{}\"", nearest) : ""));
}

std::string toml_string(std::string_view text) {
  std::string toml = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      toml += fmt::format("\\u{:04X}", byte);
    } else {
      if (c == '"' || c == '\\') toml += '\\';
      toml += c;
    }
  }
  return toml + '"';
}

}  // namespace margay
