#include "tasks/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens(text.size());
    for (size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<unsigned char>(text[i]);
    return tokens;
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) {
      if (token >= 0 && token < vocab_size()) text += static_cast<char>(token);
    }
    return text;
  }
  std::optional<int32_t> end_of_text() const override { return std::nullopt; }
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  throw ConfigError(fmt::format("the tokenizer must be \"bytes\", got {}", quoted(name)));
}

}  // namespace margay
