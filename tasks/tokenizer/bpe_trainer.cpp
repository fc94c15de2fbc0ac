#include "tasks/tokenizer/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <queue>

#include "engine/error.h"
#include "tasks/tokenizer/byte_alphabet.h"
#include "tasks/utf8.h"

namespace margay {
namespace {

using Json = nlohmann::ordered_json;
using Pair = std::pair<int32_t, int32_t>;

struct Word {
  std::vector<int32_t> tokens;
  int64_t count;
};

struct PairHash {
  size_t operator()(const Pair& pair) const {
    return (static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 | static_cast<uint32_t>(pair.second)) *
               0x9E3779B97F4A7C15u >>
           16;
  }
};

/// The tokens while they are learned, by id, spelled as in a tokenizer.json.
class Vocabulary {
 public:
  explicit Vocabulary(const std::vector<std::string>& special) {
    for (const std::string& token : special) add(token);
    std::array<unsigned char, 256> order{};  // of the bytes, by the character that spells them
    std::iota(order.begin(), order.end(), static_cast<unsigned char>(0));
    const auto code = [](unsigned char byte) {
      size_t at = 0;
      return next_code_point(byte_spelling(byte), at);
    };
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return code(a) < code(b); });
    for (const unsigned char byte : order) byte_tokens_[byte] = add(byte_spelling(byte));
  }

  /// The id of a token, which is new if there was none of the spelling.
  int32_t add(const std::string& spelling) {
    const auto [entry, is_new] = ids_.try_emplace(spelling, static_cast<int32_t>(spellings_.size()));
    if (is_new) spellings_.push_back(spelling);
    return entry->second;
  }
  int32_t of_byte(unsigned char byte) const { return byte_tokens_[byte]; }
  const std::vector<std::string>& spellings() const { return spellings_; }
  int64_t size() const { return static_cast<int64_t>(spellings_.size()); }

 private:
  std::vector<std::string> spellings_;
  TextMap<int32_t> ids_;
  std::array<int32_t, 256> byte_tokens_{};
};

/// Words as tokens, and how often each pair of neighbours occurs in them.
class Pairs {
 public:
  Pairs(const TextMap<int64_t>& counts, const Vocabulary& vocabulary) {
    for (const auto& [piece, count] : counts) {
      Word word{{}, count};
      for (const char c : piece) word.tokens.push_back(vocabulary.of_byte(static_cast<unsigned char>(c)));
      const auto index = static_cast<uint32_t>(words_.size());
      for (size_t i = 0; i + 1 < word.tokens.size(); ++i) add({word.tokens[i], word.tokens[i + 1]}, count, index);
      words_.push_back(std::move(word));
    }
    for (const auto& [pair, known] : pairs_) queue_.push({known.count, pair});
  }

  /// The most frequent pair; a count of 0 where there is none.
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  Candidate take_best() {
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      const int64_t count = pairs_[best.pair].count;
      if (count == best.count) return best;
      if (count > 0) queue_.push({count, best.pair});  // it has changed since it was put there
    }
    return {0, {}};
  }

  void merge(const Pair& pair, int32_t result) {
    std::vector<uint32_t> words = std::move(pairs_[pair].words);
    pairs_.erase(pair);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    fresh_.clear();
    for (const uint32_t index : words) merge_in(index, pair, result);
    std::sort(fresh_.begin(), fresh_.end());
    fresh_.erase(std::unique(fresh_.begin(), fresh_.end()), fresh_.end());
    for (const Pair& made : fresh_) {
      if (const int64_t count = pairs_[made].count; count > 0) queue_.push({count, made});
    }
    pairs_.erase(pair);  // what overlapping occurrences, as in "aaa", have left of it
  }

 private:
  struct Known {
    int64_t count = 0;
    std::vector<uint32_t> words;  // in which it occurs, or did; some more than once
  };

  void add(const Pair& pair, int64_t count, uint32_t word) {
    Known& known = pairs_[pair];
    known.count += count;
    if (known.words.empty() || known.words.back() != word) known.words.push_back(word);
  }

  void merge_in(uint32_t index, const Pair& pair, int32_t result) {
    Word& word = words_[index];
    std::vector<int32_t>& tokens = word.tokens;
    const auto gone = [&](int32_t left, int32_t right) { pairs_[{left, right}].count -= word.count; };
    const auto made = [&](int32_t left, int32_t right) {
      add({left, right}, word.count, index);
      fresh_.push_back({left, right});
    };
    size_t kept = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool found = i + 1 < tokens.size() && tokens[i] == pair.first && tokens[i + 1] == pair.second;
      if (found) {
        if (kept > 0) {
          gone(tokens[kept - 1], pair.first);
          made(tokens[kept - 1], result);
        }
        if (i + 2 < tokens.size()) {
          gone(pair.second, tokens[i + 2]);
          made(result, tokens[i + 2]);
        }
        ++i;
      }
      tokens[kept++] = found ? result : tokens[i];
    }
    tokens.resize(kept);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, Known, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> fresh_;  // pairs that a merge has made
};

std::string to_json(const Vocabulary& vocabulary, const std::vector<Pair>& merges,
                    const std::vector<std::string>& special) {
  const std::vector<std::string>& spellings = vocabulary.spellings();
  const Json byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  Json added = Json::array(), vocab = Json::object(), pairs = Json::array();
  for (size_t id = 0; id < special.size(); ++id) {
    added.push_back({{"id", id},
                     {"content", special[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (size_t id = 0; id < spellings.size(); ++id) vocab[spellings[id]] = id;
  for (const auto& [left, right] : merges) {
    pairs.push_back({spellings[static_cast<size_t>(left)], spellings[static_cast<size_t>(right)]});
  }
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false},
                {"vocab", vocab},
                {"merges", pairs}}}}
             .dump(1) +
         '\n';
}

}  // namespace

BpeTrainer::BpeTrainer() : pre_tokenizer_({{Pattern::expression(kGpt2Pattern)}}) {}

size_t BpeTrainer::add_part(std::string_view text, bool last) {
  const auto count = [&](std::string_view piece) {
    const auto known = counts_.find(piece);
    if (known != counts_.end()) {
      ++known->second;
    } else {
      counts_.emplace(piece, 1);
    }
  };
  size_t done = 0;
  while (done < text.size()) {
    const std::string_view rest = text.substr(done);
    const size_t valid = valid_utf8_prefix(rest);
    const bool open = !last && (valid == rest.size() || is_open_utf8(rest.substr(valid)));
    done += pre_tokenizer_.split(rest.substr(0, valid), open, count);
    if (open) break;
    if (done < text.size()) ++done;  // a byte that is no UTF-8 is a piece of its own, with nothing to merge
  }
  return done;
}

std::string BpeTrainer::train(const BpeTrainerSettings& settings,
                              const std::function<bool(int64_t tokens)>& progress) const {
  Vocabulary vocabulary(settings.special);
  if (settings.vocab_size < vocabulary.size()) {
    throw ConfigError(
        fmt::format("the vocabulary must have at least {} tokens: 256 bytes and {} special tokens, got {}",
                    vocabulary.size(), settings.special.size(), settings.vocab_size));
  }
  Pairs pairs(counts_, vocabulary);
  std::vector<Pair> merges;
  for (;;) {
    if (!progress(vocabulary.size())) return {};
    if (vocabulary.size() >= settings.vocab_size) break;
    const auto [count, pair] = pairs.take_best();
    if (count < std::max<int64_t>(1, settings.min_count)) break;
    const std::vector<std::string>& spellings = vocabulary.spellings();
    const int32_t result =
        vocabulary.add(spellings[static_cast<size_t>(pair.first)] + spellings[static_cast<size_t>(pair.second)]);
    pairs.merge(pair, result);
    merges.push_back(pair);
  }
  return to_json(vocabulary, merges, settings.special);
}

}  // namespace margay
