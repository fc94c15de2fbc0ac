#include "tasks/tokenizer/split.h"

#include <algorithm>

#include "tasks/utf8.h"

namespace margay {

bool PreTokenizer::takes_parts() const {
  return !rules_.empty() && std::all_of(rules_.begin(), rules_.end(), [](const SplitRule& rule) {
    return !rule.pattern.looks_back() &&
           (rule.behavior == SplitBehavior::isolated || rule.behavior == SplitBehavior::removed);
  });
}

template <class OnPiece>
size_t PreTokenizer::walk(const SplitRule& rule, std::string_view text, bool open, const OnPiece& on_piece) {
  size_t done = 0, from = 0;
  Pattern::Match match;
  while (from <= text.size()) {
    const Pattern::Found found = rule.pattern.find(text, from, open, match);
    if (found == Pattern::Found::open) return done;
    if (found == Pattern::Found::none) break;
    if (done < match.begin) on_piece(Piece{done, match.begin, rule.invert});
    if (match.begin < match.end) on_piece(Piece{match.begin, match.end, !rule.invert});
    done = from = match.end;
    if (match.begin == match.end) {  // an empty match is a border; the search goes on at the next character
      if (from == text.size()) break;
      next_code_point(text, from);
    }
  }
  if (open) return done;
  if (done < text.size()) on_piece(Piece{done, text.size(), rule.invert});
  return text.size();
}

std::vector<PreTokenizer::Piece> PreTokenizer::merged(std::vector<Piece> pieces, SplitBehavior behavior) {
  const bool backwards = behavior == SplitBehavior::merged_with_next;
  if (backwards) std::reverse(pieces.begin(), pieces.end());
  std::vector<Piece> result;
  bool match_before = false;
  for (const Piece& piece : pieces) {
    const bool joins =
        behavior == SplitBehavior::contiguous ? piece.match == match_before : piece.match && !match_before;
    match_before = piece.match;
    if (joins && !result.empty()) {
      result.back().begin = std::min(result.back().begin, piece.begin);
      result.back().end = std::max(result.back().end, piece.end);
    } else {
      result.push_back(piece);
    }
  }
  if (backwards) std::reverse(result.begin(), result.end());
  return result;
}

size_t PreTokenizer::apply(size_t rule_index, std::string_view text, bool open, const Emit& emit) const {
  if (rule_index == rules_.size()) {
    if (open) return 0;
    emit(text);
    return text.size();
  }
  const SplitRule& rule = rules_[rule_index];
  const auto next = [&](const Piece& piece) {
    apply(rule_index + 1, text.substr(piece.begin, piece.end - piece.begin), false, emit);
  };
  switch (rule.behavior) {
    case SplitBehavior::isolated:
      return walk(rule, text, open, next);
    case SplitBehavior::removed:
      return walk(rule, text, open, [&](const Piece& piece) {
        if (!piece.match) next(piece);
      });
    default:
      break;
  }
  if (open) return 0;
  std::vector<Piece> pieces;
  walk(rule, text, open, [&](const Piece& piece) { pieces.push_back(piece); });
  for (const Piece& piece : merged(std::move(pieces), rule.behavior)) next(piece);
  return text.size();
}

}  // namespace margay
