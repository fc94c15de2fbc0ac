#include "tasks/tokenizer/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/error.h"
#include "engine/names.h"
#include "tasks/tokenizer/pattern.h"
#include "tasks/utf8.h"

namespace margay {
namespace {

bool is_white_space(char32_t code) {
  constexpr std::array<char32_t, 8> single = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F};
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x2000 && code <= 0x200A) || code == 0x3000 ||
         std::find(single.begin(), single.end(), code) != single.end();
}

/// The last character that ends at `end` > 0.
std::string_view character_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin, end - begin);
}

/// Whether a text starts with a character of a word, as Unicode Technical Standard 18 has it.
bool starts_with_word(std::string_view text) {
  static const Pattern word = Pattern::expression(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}])");
  if (text.empty()) return false;
  size_t end = 0;
  next_code_point(text, end);
  Pattern::Match match;
  return word.find(text.substr(0, end), 0, false, match) == Pattern::Found::match;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && starts_with_word(character_before(text, text.size()));
}

/// Where the white space ends that starts at `at`.
size_t space_end(std::string_view text, size_t at) {
  for (size_t next = at; next < text.size() && is_white_space(next_code_point(text, next));) at = next;
  return at;
}

/// Where the white space begins that ends at `end`.
size_t space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const std::string_view last = character_before(text, end);
    size_t ignored = 0;
    if (!is_white_space(next_code_point(last, ignored))) break;
    end -= last.size();
  }
  return end;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::sort(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.content < b.content; });
  const auto twice = std::adjacent_find(tokens_.begin(), tokens_.end(),
                                        [](const auto& a, const auto& b) { return a.content == b.content; });
  if (twice != tokens_.end()) throw DataError(fmt::format("the token {} is added twice", quoted(twice->content)));
  for (const AddedToken& token : tokens_) {
    longest_ = std::max(longest_, token.content.size());
    starts_[static_cast<unsigned char>(token.content[0])] = true;
  }
}

bool AddedTokens::takes_parts() const {
  return std::none_of(tokens_.begin(), tokens_.end(), [](const AddedToken& token) {
    return token.single_word || token.strip_left || token.strip_right;
  });
}

const AddedToken* AddedTokens::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  auto first = tokens_.begin(), last = tokens_.end();  // those that start with the first `length` bytes
  for (size_t length = 0; first != last; ++length) {
    if (first->content.size() == length && length > 0) longest = &*first++;
    if (length == text.size()) break;
    const auto byte = [&](const AddedToken& token) { return static_cast<unsigned char>(token.content[length]); };
    const auto wanted = static_cast<unsigned char>(text[length]);
    first = std::partition_point(first, last, [&](const AddedToken& token) { return byte(token) < wanted; });
    last = std::partition_point(first, last, [&](const AddedToken& token) { return byte(token) == wanted; });
  }
  return longest;
}

std::vector<AddedTokens::Part> AddedTokens::parts(std::string_view text, bool open) const {
  std::vector<Part> parts;
  // Where text may follow, a token that starts in the last bytes may be a longer one.
  size_t limit = text.size();
  if (open && longest_ > 0) limit -= std::min(limit, longest_ - 1);
  while (limit > 0 && limit < text.size() && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  size_t done = 0;
  for (size_t at = 0; at < limit && !tokens_.empty();) {
    const bool possible = starts_[static_cast<unsigned char>(text[at])];
    const AddedToken* token = possible ? longest_at(text.substr(at)) : nullptr;
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
    if (token->strip_left) begin = std::min(std::max(space_begin(text, begin), done), end);
    if (token->strip_right) end = space_end(text, end);
    if (done < begin) parts.push_back({text.substr(done, begin - done)});
    parts.push_back({text.substr(begin, end - begin), token->id});
    done = end;
  }
  if (done < limit) parts.push_back({text.substr(done, limit - done), kNone, open});
  return parts;
}

}  // namespace margay
