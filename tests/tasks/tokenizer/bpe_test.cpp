#include "tasks/tokenizer/bpe.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "engine/error.h"
#include "engine/rng.h"

using namespace margay;

namespace {

using Tokens = std::vector<int32_t>;

std::array<int32_t, 256> byte_values() {
  std::array<int32_t, 256> tokens{};
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

Tokens encode(const Bpe& bpe, std::string_view piece) {
  Bpe::Scratch scratch;
  Tokens tokens, again;
  bpe.encode(piece, scratch, tokens);
  bpe.encode(piece, scratch, again);  // from memory
  CHECK(again == tokens);
  return tokens;
}

/// Merges the pair of lowest rank, the leftmost first, until there is none: quadratic, and plain to see.
Tokens naive(const std::vector<Bpe::Merge>& merges, std::string_view piece) {
  Tokens tokens;
  for (const char c : piece) tokens.push_back(static_cast<unsigned char>(c));
  for (;;) {
    size_t best_rank = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left != tokens[i] || merges[rank].right != tokens[i + 1]) continue;
        best_rank = rank;
        place = i;
      }
    }
    if (best_rank == merges.size()) return tokens;
    tokens[place] = merges[best_rank].result;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

}  // namespace

TEST_CASE("bpe: merges in the order of ranks, as the naive algorithm does") {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    RandomStream random(seed, 1);
    std::vector<Bpe::Merge> merges;
    int32_t next = 256;
    const auto any = [&] {  // a token that there is
      return random.below(3) == 0 && next > 256 ? 256 + static_cast<int32_t>(random.below(next - 256))
                                                : 'a' + static_cast<int32_t>(random.below(3));
    };
    for (int i = 0; i < 12; ++i) {
      const int32_t left = any(), right = any();
      const bool known = std::any_of(merges.begin(), merges.end(),
                                     [&](const Bpe::Merge& m) { return m.left == left && m.right == right; });
      if (!known) merges.push_back({left, right, next++});
    }
    const Bpe bpe(byte_values(), merges, {});
    for (int i = 0; i < 20; ++i) {
      std::string piece;
      for (uint32_t left = random.below(40); left > 0; --left) piece += static_cast<char>('a' + random.below(3));
      CAPTURE(piece);
      CHECK(encode(bpe, piece) == naive(merges, piece));
    }
  }
}

TEST_CASE("bpe: a million equal bytes take no quadratic time") {
  std::vector<Bpe::Merge> merges;
  for (int32_t power = 0; power < 8; ++power) {
    const int32_t part = power == 0 ? 'a' : 255 + power;
    merges.push_back({part, part, 256 + power});
  }
  const Tokens tokens = encode(Bpe(byte_values(), merges, {}), std::string(1'000'000, 'a'));
  REQUIRE(tokens.size() == 1'000'000 / 256 + 1);  // 64 are left, which is a power of two, too
  CHECK(tokens.front() == 263);
  CHECK(tokens.back() == 261);
}

TEST_CASE("bpe: bytes without token, whole pieces, and merges that are there twice") {
  std::array<int32_t, 256> tokens = byte_values();
  tokens['x'] = tokens['y'] = Bpe::kNoToken;
  CHECK(encode(Bpe(tokens, {}, {}), "axyb") == Tokens{'a', 'b'});
  CHECK(encode(Bpe(tokens, {}, {.unknown = 300}), "axyb") == Tokens{'a', 300, 300, 'b'});
  CHECK(encode(Bpe(tokens, {}, {.unknown = 300, .fuse_unknown = true}), "axybx") == Tokens{'a', 300, 'b', 300});
  CHECK(encode(Bpe(tokens, {}, {}), "xy").empty());
  CHECK(encode(Bpe(tokens, {{'a', 'b', 256}}, {.whole = {{"abc", 400}}}), "abc") == Tokens{400});
  CHECK(encode(Bpe(tokens, {{'a', 'b', 256}}, {.whole = {{"abc", 400}}}), "abcd") == Tokens{256, 'c', 'd'});
  CHECK_THROWS_AS(Bpe(tokens, {{'a', 'b', 256}, {'a', 'b', 257}}, {}), DataError);
}
