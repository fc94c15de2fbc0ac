#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace margay {

/// Hash and equality by which a map of strings is asked for string views.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <class Value>
using TextMap = std::unordered_map<std::string, Value, TextHash, std::equal_to<>>;

/// Byte-pair encoding (Gage 1994; Sennrich, Haddow and Birch 2016, arXiv:1508.07909) of bytes: a piece of text starts
/// as the tokens of its bytes, and as long as two neighbours are a known pair, the pair of lowest rank (the leftmost of
/// equals) becomes one token. O(n log n) for a piece of n bytes.
class Bpe {
 public:
  /// The rank of a merge is its place in the list.
  struct Merge {
    int32_t left, right, result;
  };
  struct Settings {
    std::optional<int32_t> unknown = {};  ///< the token of bytes that have none; without it they are dropped
    bool fuse_unknown = false;            ///< one for several in a row
    TextMap<int32_t> whole = {};          ///< pieces that are a token without merging
  };
  static constexpr int32_t kNoToken = -1;

  /// Throws DataError where a pair of tokens has two merges.
  Bpe(const std::array<int32_t, 256>& byte_tokens, const std::vector<Merge>& merges, Settings settings);

  /// Working memory of encode(), which also remembers the tokens of pieces.
  class Scratch {
   private:
    friend class Bpe;
    struct Symbol {
      int32_t token;
      int64_t previous, next;  // -1 = none
      bool alive;
    };
    struct Candidate {
      int32_t rank, result;
      int64_t place;
      /// Puts the lowest rank, then the leftmost place, on top of a heap.
      bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : place > other.place;
      }
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    TextMap<std::vector<int32_t>> known_;
  };

  /// Appends the tokens of a piece.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& tokens) const;

 private:
  struct Known {
    int32_t rank, result;
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const { return pair * 0x9E3779B97F4A7C15u >> 16; }
  };

  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  void start(std::string_view piece, std::vector<Scratch::Symbol>& symbols) const;
  void push(Scratch& scratch, int64_t place) const;
  void merge(Scratch& scratch) const;

  std::array<int32_t, 256> byte_tokens_;
  std::unordered_map<uint64_t, Known, PairHash> merges_;
  Settings settings_;
};

}  // namespace margay
