#include "tasks/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/mapped_file.h"
#include "tasks/tokenizer/tokenizer_json.h"

namespace margay {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }
  size_t encode_part(std::string_view text, bool, std::vector<int32_t>& tokens) const override {
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return text.size();
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) {
      if (token >= 0 && token < vocab_size()) text += static_cast<char>(token);
    }
    return text;
  }
  std::optional<int32_t> end_of_text() const override { return std::nullopt; }
  const std::string& json() const override { return no_json_; }

 private:
  std::string no_json_;
};

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  encode_part(text, true, tokens);
  return tokens;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  const MappedFile file(name);
  if (file.bytes().size() > kMostTokenizerBytes) {
    throw DataError(fmt::format("{}: a tokenizer.json must have at most {} bytes, got {}", quoted_path(name),
                                kMostTokenizerBytes, file.bytes().size()));
  }
  return parse_tokenizer({file.bytes().begin(), file.bytes().end()}, name);
}

}  // namespace margay
