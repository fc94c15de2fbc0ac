#include "tasks/tokenizer/bpe_trainer.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "engine/error.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;
using test::Json;

namespace {

Json train(const std::vector<std::string>& texts, BpeTrainerSettings settings) {
  BpeTrainer trainer;
  for (const std::string& text : texts) CHECK(trainer.add_part(text, true) == text.size());
  return Json::parse(trainer.train(settings, [](int64_t) { return true; }));
}

std::vector<std::string> merges(const Json& json) {
  std::vector<std::string> merges;
  for (const Json& pair : json["model"]["merges"]) {
    merges.push_back(pair[0].get<std::string>() + ' ' + pair[1].get<std::string>());
  }
  return merges;
}

}  // namespace

TEST_CASE("bpe trainer: the most frequent pair first, of equals the one of smaller ids" *
          doctest::skip(!test::has_bpe())) {
  // As pieces: low 5 times, lower 2, newest 6, widest 3 (Sennrich, Haddow and Birch 2016, with a space between).
  std::string text = "low";
  for (int i = 0; i < 4; ++i) text += "\nlow";
  for (int i = 0; i < 2; ++i) text += "\nlower";
  for (int i = 0; i < 6; ++i) text += "\nnewest";
  for (int i = 0; i < 3; ++i) text += "\nwidest";
  const Json json = train({text}, {.vocab_size = 257 + 7});
  CHECK(merges(json) == std::vector<std::string>{"e s", "es t", "l o", "lo w", "e w", "n ew", "new est"});
  CHECK(json["model"]["vocab"]["<|endoftext|>"] == 0);
  CHECK(json["model"]["vocab"]["!"] == 1);
  CHECK(json["model"]["vocab"]["newest"] == 263);
  CHECK(json["added_tokens"][0]["special"] == true);
}

TEST_CASE("bpe trainer: overlapping pairs, and words of equal letters" * doctest::skip(!test::has_bpe())) {
  CHECK(merges(train({"aaaaaaaa"}, {.vocab_size = 300, .min_count = 1})) ==
        std::vector<std::string>{"a a", "aa aa", "aaaa aaaa"});
  CHECK(merges(train({"aaaaa"}, {.vocab_size = 300, .min_count = 1})) ==
        std::vector<std::string>{"a a", "aa a", "aa aaa"});
  CHECK(merges(train({"ab ab"}, {.vocab_size = 300, .min_count = 2})) == std::vector<std::string>{"a b"});
  CHECK(merges(train({"ab ab"}, {.vocab_size = 300, .min_count = 3})).empty());
}

TEST_CASE("bpe trainer: neither the order of files nor parts change the vocabulary" * doctest::skip(!test::has_bpe())) {
  std::vector<std::string> texts;
  for (uint64_t seed = 0; seed < 8; ++seed) texts.push_back(test::hard_text(seed, 400));
  const BpeTrainerSettings settings{.vocab_size = 400};
  const Json json = train(texts, settings);
  CHECK(merges(json).size() > 50);
  std::swap(texts[0], texts[5]);
  CHECK(train(texts, settings) == json);

  BpeTrainer parts;
  for (const std::string& text : texts) {
    size_t done = 0;
    for (size_t end = 0; done < text.size();) {
      end = std::min(text.size(), std::max(end, done) + 7);
      done += parts.add_part(std::string_view(text).substr(done, end - done), end == text.size());
    }
  }
  CHECK(Json::parse(parts.train(settings, [](int64_t) { return true; })) == json);
}

TEST_CASE("bpe trainer: vocabularies that are too small, and work that is stopped" * doctest::skip(!test::has_bpe())) {
  CHECK_THROWS_AS(train({"text"}, {.vocab_size = 256}), ConfigError);
  CHECK(merges(train({"text text"}, {.vocab_size = 257})).empty());
  BpeTrainer trainer;
  trainer.add_part("text text", true);
  CHECK(trainer.train({.vocab_size = 300}, [](int64_t) { return false; }).empty());
}
