#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace margay {

/// A JSON object in a file from outside, read with checks. A key whose value is null counts as missing. Every error is
/// a DataError in one line that names the file and the key.
class JsonObject {
 public:
  /// Reads a file of at most `most_bytes`. Throws for what is no JSON object, is nested more than 16 deep or has a key
  /// twice. Infinity and NaN, which Python writes though JSON has none, become the texts "Infinity" and "NaN".
  static JsonObject load(const std::string& path, size_t most_bytes);
  /// The same of a text; `path` is for messages.
  static JsonObject parse(std::string_view text, const std::string& path);
  ~JsonObject();
  JsonObject(JsonObject&&) noexcept;

  bool has(std::string_view key) const;
  std::vector<std::string> keys() const;

  /// All keys with their values, which must be integers.
  std::vector<std::pair<std::string, int64_t>> integers(int64_t low, int64_t high) const;

  /// The value of a key, which must be there.
  int64_t integer(std::string_view key, int64_t low, int64_t high) const;
  std::vector<int64_t> integer_list(std::string_view key, int64_t low, int64_t high) const;
  double number(std::string_view key) const;
  bool flag(std::string_view key) const;
  std::string text(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  std::vector<JsonObject> objects(std::string_view key) const;
  /// A list of pairs, each as ["a", "b"] or as "a b".
  std::vector<std::pair<std::string, std::string>> text_pairs(std::string_view key) const;
  /// The value of any type as JSON without white space.
  std::string json(std::string_view key) const;

  /// The same with a value for a key that is missing.
  double number(std::string_view key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  bool flag(std::string_view key, bool otherwise) const { return has(key) ? flag(key) : otherwise; }
  std::string text(std::string_view key, std::string_view otherwise) const {
    return has(key) ? text(key) : std::string(otherwise);
  }

  /// Throws that `key` must be `wanted` and is what it is; used where a value has the right type but does not fit.
  [[noreturn]] void fail(std::string_view key, std::string_view wanted) const;

 private:
  struct Node;  // of the JSON library, which stays behind it
  JsonObject(std::string path, std::string prefix, std::shared_ptr<const Node> root, const void* object);

  std::string path_, prefix_;         // for messages: the file, and "rope_parameters." of an object inside
  std::shared_ptr<const Node> root_;  // keeps everything alive
  const void* object_;
};

}  // namespace margay
