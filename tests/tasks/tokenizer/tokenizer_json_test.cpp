#include "tasks/tokenizer/tokenizer_json.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

#include "engine/error.h"
#include "engine/rng.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;
using test::Json;

namespace {

using Pieces = std::vector<std::string>;

Json added_token(int64_t id, const char* content, const char* flag = "special") {
  Json token{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
             {"rstrip", false}, {"normalized", false}, {"special", false}};
  token[flag] = true;
  return token;
}

/// As of GPT-NeoX: normalisation form C, and runs of spaces as added tokens.
Json neox_json() {
  Json json = test::small_tokenizer_json();
  json["normalizer"] = {{"type", "NFC"}};
  int64_t id = 300;
  for (const char* content : {"    ", "   ", "  ", "\u1112\u1161"}) {
    json["added_tokens"].push_back(added_token(id++, content, "normalized"));
  }
  json["added_tokens"].push_back(added_token(id++, "ADD"));
  return json;
}

/// As of newer models: a pattern of its own before the bytes, and whole pieces before merges.
Json sequence_json() {
  Json json = test::small_tokenizer_json();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", R"((?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+)"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}}}};
  json["model"]["ignore_merges"] = true;
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  return json;
}

}  // namespace

TEST_CASE("tokenizer.json: pieces, merges and special tokens" * doctest::skip(!test::has_bpe())) {
  const auto tokenizer = test::tokenizer_of(test::small_tokenizer_json());
  CHECK(tokenizer->vocab_size() > 257);
  CHECK(tokenizer->vocab_size() <= 300);
  REQUIRE(tokenizer->end_of_text());
  CHECK(*tokenizer->end_of_text() == 0);
  CHECK(test::pieces(*tokenizer, "the cat<|endoftext|> ran  away") ==
        Pieces{"the", " cat", "<|endoftext|>", " ran", " ", " away"});
  CHECK(tokenizer->encode("<|endoftext|>") == std::vector<int32_t>{0});
  CHECK(test::pieces(*tokenizer, "<|endoftext|").size() > 5);
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->decode(std::vector<int32_t>{-1, 1'000'000}).empty());
}

TEST_CASE("tokenizer.json: merges in either spelling" * doctest::skip(!test::has_bpe())) {
  Json json = test::small_tokenizer_json();
  const auto pairs = test::tokenizer_of(json);
  for (Json& merge : json["model"]["merges"]) {
    merge = merge[0].get<std::string>() + ' ' + merge[1].get<std::string>();
  }
  const auto texts = test::tokenizer_of(json);
  const std::string text = test::hard_text(1, 300);
  CHECK(texts->encode(text) == pairs->encode(text));
}

TEST_CASE("tokenizer.json: normalisation, and added tokens in what comes of it" * doctest::skip(!test::has_bpe())) {
  const auto tokenizer = test::tokenizer_of(neox_json());
  CHECK(test::pieces(*tokenizer, "the     cat") == Pieces{"the", "    ", " cat"});
  CHECK(tokenizer->encode("e\u0301") == tokenizer->encode("\u00e9"));
  CHECK(tokenizer->encode("\ud558") == std::vector<int32_t>{303});
  CHECK(tokenizer->decode(tokenizer->encode("\u1112\u1161")) == "\ud558");
  CHECK(test::pieces(*tokenizer, "xADDED") == Pieces{"x", "ADD", "E", "D"});
  CHECK(tokenizer->vocab_size() == 305);
}

TEST_CASE("tokenizer.json: a space before each stretch of text" * doctest::skip(!test::has_bpe())) {
  Json json = test::small_tokenizer_json();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const auto tokenizer = test::tokenizer_of(json);
  CHECK(test::pieces(*tokenizer, "cat<|endoftext|>cat cat") == Pieces{" cat", "<|endoftext|>", " cat", " cat"});
  std::vector<int32_t> tokens;
  CHECK(tokenizer->encode_part("the cat and the rat", false, tokens) == 0);
}

TEST_CASE("tokenizer.json: all bytes come back, and parts have the tokens of the whole" *
          doctest::skip(!test::has_bpe())) {
  int number = 0;
  for (const Json& json : {test::small_tokenizer_json(), neox_json(), sequence_json()}) {
    const auto tokenizer = test::tokenizer_of(json);
    for (uint64_t seed = 0; seed < 60; ++seed) {
      CAPTURE(number);
      CAPTURE(seed);
      const std::string text = test::hard_text(seed, 60);
      const std::vector<int32_t> whole = tokenizer->encode(text);
      if (number == 0) CHECK(tokenizer->decode(whole) == text);
      RandomStream random(seed, 2);
      std::vector<int32_t> parts;
      size_t done = 0;
      for (size_t end = 0; done < text.size();) {
        end = std::min(text.size(), std::max(end, done) + random.below(20));
        done += tokenizer->encode_part(std::string_view(text).substr(done, end - done), end == text.size(), parts);
      }
      CHECK(parts == whole);
    }
    ++number;
  }
}

TEST_CASE("tokenizer.json: parts are used up as they come" * doctest::skip(!test::has_bpe())) {
  const auto tokenizer = test::tokenizer_of(neox_json());
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the cat sat\n";
  std::vector<int32_t> tokens;
  CHECK(tokenizer->encode_part(text, false, tokens) > text.size() - 40);
}

TEST_CASE("tokenizer.json: what is not supported or wrong is refused by name" * doctest::skip(!test::has_bpe())) {
  const auto refused = [](const std::function<void(Json&)>& change) {
    Json json = test::small_tokenizer_json();
    change(json);
    const std::string message = test::refusal(json.dump());
    CHECK(message.starts_with("\"tokenizer.json\": "));
    CHECK(message.find('\n') == std::string::npos);
    return message;
  };
  const auto contains = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(contains(refused([](Json& j) { j["model"]["type"] = "WordPiece"; }), "\"model.type\" must be \"BPE\""));
  CHECK(contains(refused([](Json& j) { j["model"]["dropout"] = 0.1; }), "model.dropout"));
  CHECK(contains(refused([](Json& j) { j["model"]["byte_fallback"] = true; }), "model.byte_fallback"));
  CHECK(contains(refused([](Json& j) { j["model"]["unk_token"] = "none"; }), "model.unk_token"));
  CHECK(
      contains(refused([](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }), "continuing_subword_prefix"));
  CHECK(contains(refused([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }), "end_of_word_suffix"));
  CHECK(contains(refused([](Json& j) { j["model"]["vocab"]["a"] = -1; }), "model.vocab.a"));
  CHECK(contains(refused([](Json& j) { j["model"]["vocab"]["a"] = 1e300; }), "model.vocab.a"));
  CHECK(contains(refused([](Json& j) { j["model"]["vocab"]["a"] = 1LL << 40; }), "model.vocab.a"));
  CHECK(contains(refused([](Json& j) { j["model"]["vocab"]["a"] = 5; }), "two tokens have the id 5"));
  CHECK(contains(refused([](Json& j) { j["model"]["vocab"] = Json::object(); }), "model.vocab"));
  CHECK(contains(refused([](Json& j) { j["model"].erase("merges"); }), "model.merges"));
  CHECK(contains(refused([](Json& j) { j["model"]["merges"].push_back({"a", "b", "c"}); }), "model.merges"));
  CHECK(contains(refused([](Json& j) { j["model"]["merges"].push_back("abc"); }), "model.merges"));
  CHECK(contains(refused([](Json& j) { j["model"]["merges"].push_back("x y"); }), "\"xy\", which is not"));
  CHECK(contains(refused([](Json& j) { j["model"]["merges"].push_back({"", "a"}); }), "\"\", which is not"));
  CHECK(contains(refused([](Json& j) { j["model"]["merges"].push_back(j["model"]["merges"][0]); }), "merged twice"));
  CHECK(contains(refused([](Json& j) { j["normalizer"] = {{"type", "Lowercase"}}; }), "normalizer.type"));
  CHECK(contains(refused([](Json& j) { j["pre_tokenizer"] = nullptr; }), "pre_tokenizer"));
  CHECK(contains(refused([](Json& j) { j["pre_tokenizer"] = {{"type", "Whitespace"}}; }), "pre_tokenizer.type"));
  CHECK(contains(refused([](Json& j) { j["decoder"] = {{"type", "WordPiece"}}; }), "decoder.type"));
  CHECK(contains(refused([](Json& j) { j["added_tokens"][0]["id"] = 7; }), "added_tokens[0].id"));
  CHECK(contains(refused([](Json& j) { j["added_tokens"].push_back(added_token(7, "new")); }),
                 "two tokens have the id 7"));
  CHECK(contains(refused([](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); }), "added twice"));
  CHECK(contains(refused([](Json& j) { j["added_tokens"] = 1; }), "added_tokens"));
  CHECK(contains(refused([](Json& j) { j.erase("model"); }), "\"model\""));
  CHECK(contains(test::refusal("[]"), "not a valid JSON object"));
  CHECK(contains(test::refusal(std::string(1'000'000, '[')), "not a valid JSON object"));
  CHECK(contains(test::refusal("{\"a\":" + std::string(100, '[')), "nested too deeply"));
  CHECK(contains(test::refusal("{\"model\":{},\"model\":{}}"), "twice"));
}

TEST_CASE("tokenizer.json: damaged files are refused or work, and never more" * doctest::skip(!test::has_bpe())) {
  const std::string good = neox_json().dump();
  const std::string text = test::hard_text(3, 50);
  int loaded = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    RandomStream random(seed, 3);
    std::string json = good;
    for (uint32_t left = 1 + random.below(4); left > 0; --left) {
      // Half of the changes in what is not vocabulary, which is most of the file.
      const size_t reach = random.below(2) == 0 ? json.size() : std::min<size_t>(json.size(), 1'200);
      const size_t at = random.below(static_cast<uint32_t>(reach));
      switch (random.below(4)) {
        case 0:
          json[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          json.erase(at, 1 + random.below(30));
          break;
        case 2:
          json.insert(at, json.substr(random.below(static_cast<uint32_t>(json.size())), random.below(30)));
          break;
        default:
          json[at] = "0123456789[]{}\",:-truefalsn"[random.below(27)];
      }
    }
    try {
      const auto tokenizer = parse_tokenizer(json, "x");
      tokenizer->decode(tokenizer->encode(text));
      ++loaded;
    } catch (const DataError&) {  // what a damaged file deserves
    }
  }
  CHECK(loaded > 10);  // else the changes test nothing but the JSON parser
  for (size_t end = 0; end < good.size(); end += 97)
    CHECK_THROWS_AS(parse_tokenizer(good.substr(0, end), "x"), DataError);
}

TEST_CASE("tokenizer.json: files" * doctest::skip(!test::has_bpe())) {
  const test::TempDir dir;
  const std::string json = test::small_tokenizer_json().dump();
  const auto tokenizer = make_tokenizer(dir.write("tokenizer.json", json));
  CHECK(tokenizer->json() == json);
  CHECK_THROWS_AS(make_tokenizer(dir.file("missing.json")), DataError);
  CHECK_THROWS_AS(make_tokenizer(dir.file(".")), DataError);
  CHECK_THROWS_AS(make_tokenizer(""), DataError);
}
