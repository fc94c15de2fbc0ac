#include "tasks/hf/json_object.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/mapped_file.h"
#include "engine/names.h"

namespace margay {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 16;

/// The text with Infinity and NaN outside of strings in quotes.
std::string without_python_numbers(std::string_view text) {
  std::string result;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string && text[i] == '\\') {
      result += text.substr(i++, 2);
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    bool replaced = false;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (in_string || replaced || !text.substr(i).starts_with(word)) continue;
      result += fmt::format("\"{}\"", word);
      i += word.size() - 1;
      replaced = true;
    }
    if (!replaced) result += text[i];
  }
  return result;
}

/// Refuses nesting beyond kDeepest and keys that an object has twice, while the text is being parsed.
class Guard {
 public:
  bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth >= kDeepest) fault_ = "it is nested too deeply";
      keys_.emplace_back();
    }
    if (event == Json::parse_event_t::key && !keys_.back().insert(parsed.get<std::string>()).second)
      fault_ = fmt::format("it has the key {} twice", margay::quoted(parsed.get<std::string>()));
    if (event == Json::parse_event_t::object_end || event == Json::parse_event_t::array_end) keys_.pop_back();
    if (!fault_.empty()) throw DataError(fault_);
    return true;
  }

 private:
  std::vector<std::set<std::string>> keys_;  // of the objects around, lists included
  std::string fault_;
};

[[noreturn]] void fail_parsing(const std::string& path, std::string_view fault) {
  throw DataError(fmt::format("{}: not a valid JSON object: {}", quoted_path(path), fault));
}

const Json& json_of(const void* object) { return *static_cast<const Json*>(object); }

std::string describe(const Json& value) {
  if (value.is_string()) return margay::quoted(value.get<std::string>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  return value.dump();
}

}  // namespace

struct JsonObject::Node {
  Json json;
};

JsonObject::JsonObject(std::string path, std::string prefix, std::shared_ptr<const Node> root, const void* object)
    : path_(std::move(path)), prefix_(std::move(prefix)), root_(std::move(root)), object_(object) {}
JsonObject::~JsonObject() = default;
JsonObject::JsonObject(JsonObject&&) noexcept = default;

JsonObject JsonObject::load(const std::string& path, size_t most_bytes) {
  const MappedFile file(path);
  const std::span<const uint8_t> bytes = file.bytes();
  if (bytes.size() > most_bytes) {
    fail_parsing(path, fmt::format("it has {} bytes, more than {}", bytes.size(), most_bytes));
  }
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);  // bytes are characters
}

JsonObject JsonObject::parse(std::string_view json, const std::string& path) {
  const auto fail = [&](std::string_view fault) { fail_parsing(path, fault); };
  const std::string text = without_python_numbers(json);
  // The parser would take a NUL for the end of the text.
  if (text.find('\0') != std::string::npos) fail("it holds a NUL");
  auto root = std::make_shared<Node>();
  try {
    root->json = Json::parse(
        text, [guard = std::make_shared<Guard>()](int depth, Json::parse_event_t event, const Json& parsed) {
          return (*guard)(depth, event, parsed);
        });
  } catch (const Json::parse_error& error) {
    fail(fmt::format("it cannot be read beyond byte {}", error.byte));
  } catch (const Json::exception&) {
    fail("it holds a number that is too large");
  } catch (const DataError& error) {
    fail(error.what());
  }
  if (!root->json.is_object()) fail("it is something else");
  const void* object = &root->json;
  return {path, "", std::move(root), object};
}

bool JsonObject::has(std::string_view key) const {
  const auto found = json_of(object_).find(std::string(key));
  return found != json_of(object_).end() && !found->is_null();
}

std::vector<std::string> JsonObject::keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json_of(object_).items()) keys.push_back(key);
  return keys;
}

void JsonObject::fail(std::string_view key, std::string_view wanted) const {
  const auto found = json_of(object_).find(std::string(key));
  const bool there = found != json_of(object_).end() && !found->is_null();
  throw DataError(fmt::format("{}: {} must be {}, {}", quoted_path(path_), margay::quoted(prefix_ + std::string(key)),
                              wanted, there ? "got " + describe(*found) : "but is missing"));
}

namespace {

bool is_integer_in(const Json& value, int64_t low, int64_t high) {
  return value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() < 1ULL << 62) &&
         value.get<int64_t>() >= low && value.get<int64_t>() <= high;
}

std::string integer_wanted(int64_t low, int64_t high) { return fmt::format("an integer from {} to {}", low, high); }

}  // namespace

std::vector<std::pair<std::string, int64_t>> JsonObject::integers(int64_t low, int64_t high) const {
  std::vector<std::pair<std::string, int64_t>> values;
  for (const auto& [key, value] : json_of(object_).items()) {
    if (!is_integer_in(value, low, high)) fail(key, integer_wanted(low, high));
    values.emplace_back(key, value.get<int64_t>());
  }
  return values;
}

int64_t JsonObject::integer(std::string_view key, int64_t low, int64_t high) const {
  if (!has(key) || !is_integer_in(json_of(object_)[std::string(key)], low, high)) {
    fail(key, integer_wanted(low, high));
  }
  return json_of(object_)[std::string(key)].get<int64_t>();
}

std::vector<int64_t> JsonObject::integer_list(std::string_view key, int64_t low, int64_t high) const {
  const auto wanted = [&] { return fmt::format("a list, each {}", integer_wanted(low, high)); };
  if (!has(key) || !json_of(object_)[std::string(key)].is_array()) fail(key, wanted());
  std::vector<int64_t> values;
  for (const Json& value : json_of(object_)[std::string(key)]) {
    if (!is_integer_in(value, low, high)) fail(key, wanted());
    values.push_back(value.get<int64_t>());
  }
  return values;
}

double JsonObject::number(std::string_view key) const {
  if (!has(key) || !json_of(object_)[std::string(key)].is_number()) fail(key, "a number");
  return json_of(object_)[std::string(key)].get<double>();
}

bool JsonObject::flag(std::string_view key) const {
  if (!has(key) || !json_of(object_)[std::string(key)].is_boolean()) fail(key, "true or false");
  return json_of(object_)[std::string(key)].get<bool>();
}

std::string JsonObject::text(std::string_view key) const {
  if (!has(key) || !json_of(object_)[std::string(key)].is_string()) fail(key, "a string");
  return json_of(object_)[std::string(key)].get<std::string>();
}

std::vector<std::string> JsonObject::texts(std::string_view key) const {
  constexpr std::string_view wanted = "a list of strings";
  if (!has(key) || !json_of(object_)[std::string(key)].is_array()) fail(key, wanted);
  std::vector<std::string> texts;
  for (const Json& value : json_of(object_)[std::string(key)]) {
    if (!value.is_string()) fail(key, wanted);
    texts.push_back(value.get<std::string>());
  }
  return texts;
}

std::string JsonObject::json(std::string_view key) const {
  if (!has(key)) fail(key, "a value");
  return json_of(object_)[std::string(key)].dump();
}

JsonObject JsonObject::object(std::string_view key) const {
  if (!has(key) || !json_of(object_)[std::string(key)].is_object()) fail(key, "an object");
  return {path_, fmt::format("{}{}.", prefix_, key), root_, &json_of(object_)[std::string(key)]};
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) const {
  constexpr std::string_view wanted = "a list of objects";
  if (!has(key) || !json_of(object_)[std::string(key)].is_array()) fail(key, wanted);
  std::vector<JsonObject> objects;
  for (const Json& item : json_of(object_)[std::string(key)]) {
    if (!item.is_object()) fail(key, wanted);
    objects.push_back(JsonObject(path_, fmt::format("{}{}[{}].", prefix_, key, objects.size()), root_, &item));
  }
  return objects;
}

std::vector<std::pair<std::string, std::string>> JsonObject::text_pairs(std::string_view key) const {
  constexpr std::string_view wanted = "a list of pairs, each [\"a\", \"b\"] or \"a b\"";
  if (!has(key) || !json_of(object_)[std::string(key)].is_array()) fail(key, wanted);
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Json& item : json_of(object_)[std::string(key)]) {
    if (item.is_string()) {
      const auto& text = item.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) fail(key, wanted);
      pairs.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      pairs.emplace_back(item[0].get<std::string>(), item[1].get<std::string>());
    } else {
      fail(key, wanted);
    }
  }
  return pairs;
}

}  // namespace margay
