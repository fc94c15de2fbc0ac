#include "tasks/tokenizer/tokenizer.h"

#include <doctest/doctest.h>

#include "engine/error.h"

using namespace margay;

TEST_CASE("tokenizer: bytes are their own tokens, whatever they are") {
  const auto tokenizer = make_tokenizer("bytes");
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::vector<int32_t> tokens = tokenizer->encode(all);
  REQUIRE(tokens.size() == 256);
  for (int32_t byte = 0; byte < 256; ++byte) CHECK(tokens[byte] == byte);
  CHECK(tokenizer->decode(tokens) == all);
  CHECK(tokenizer->vocab_size() == 256);
  CHECK(!tokenizer->end_of_text());
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->decode(std::vector<int32_t>{104, -1, 256, 105}) == "hi");
}
