#include "tests/tasks/tokenizer/small_tokenizer.h"

#include <array>

#include "engine/error.h"
#include "engine/rng.h"
#include "tasks/tokenizer/bpe_trainer.h"
#include "tasks/tokenizer/pattern.h"
#include "tasks/tokenizer/tokenizer_json.h"

namespace margay::test {

bool has_bpe() {
  try {
    Pattern::literal("a");
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

Json small_tokenizer_json() {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "the cat sat on the mat, and the rat that the cat saw ran  away\n\n\n";
  BpeTrainer trainer;
  trainer.add_part(text, true);
  return Json::parse(trainer.train({.vocab_size = 300}, [](int64_t) { return true; }));
}

std::unique_ptr<Tokenizer> tokenizer_of(const Json& json) { return parse_tokenizer(json.dump(), "tokenizer.json"); }

std::string refusal(const std::string& json) {
  try {
    parse_tokenizer(json, "tokenizer.json");
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  for (const int32_t token : tokenizer.encode(text)) pieces.push_back(tokenizer.decode({&token, 1}));
  return pieces;
}

std::string hard_text(uint64_t seed, size_t parts, bool valid_utf8) {
  constexpr std::array<std::string_view, 34> kParts = {"the",
                                                       " the",
                                                       "cat",
                                                       " ",
                                                       "  ",
                                                       "    ",
                                                       "\n",
                                                       "\r\n",
                                                       "\t",
                                                       "'s",
                                                       "n't",
                                                       "12",
                                                       "3456",
                                                       ".",
                                                       "!?",
                                                       "é",
                                                       "e\u0301",
                                                       "\u0323",
                                                       "\u0301\u0323",
                                                       "\u1112\u1161",
                                                       "\u11ab",
                                                       "漢字",
                                                       "かな",
                                                       "السَّلام",
                                                       "👩‍👩‍👧",
                                                       "\u00a0",
                                                       "\u3000",
                                                       "<|endoftext|>",
                                                       "<|endof",
                                                       "ADD",
                                                       "ADDED",
                                                       "\xff",
                                                       "\xe6\xbc",
                                                       "\xed\xa0\x80"};
  RandomStream random(seed, 0);
  std::string text;
  const auto choices = static_cast<uint32_t>(kParts.size() - (valid_utf8 ? 3 : 0));
  for (size_t i = 0; i < parts; ++i) text += kParts[random.below(choices)];
  return text;
}

}  // namespace margay::test
