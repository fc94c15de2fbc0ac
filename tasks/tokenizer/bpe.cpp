#include "tasks/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"

namespace margay {
namespace {

constexpr size_t kLongestKnown = 64;            // bytes of a piece that is remembered
constexpr size_t kMostKnown = size_t{1} << 16;  // pieces

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_tokens, const std::vector<Merge>& merges, Settings settings)
    : byte_tokens_(byte_tokens), settings_(std::move(settings)) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right, result] = merges[rank];
    if (!merges_.try_emplace(pair_of(left, right), Known{static_cast<int32_t>(rank), result}).second) {
      throw DataError(fmt::format("the pair of tokens {} and {} is merged twice", left, right));
    }
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& tokens) const {
  if (const auto whole = settings_.whole.find(piece); whole != settings_.whole.end()) {
    tokens.push_back(whole->second);
    return;
  }
  const bool short_piece = piece.size() <= kLongestKnown;
  if (short_piece) {
    if (const auto known = scratch.known_.find(piece); known != scratch.known_.end()) {
      tokens.insert(tokens.end(), known->second.begin(), known->second.end());
      return;
    }
  }
  const auto before = static_cast<std::ptrdiff_t>(tokens.size());
  start(piece, scratch.symbols_);
  merge(scratch);
  for (const Scratch::Symbol& symbol : scratch.symbols_) {
    if (symbol.alive) tokens.push_back(symbol.token);
  }
  if (!short_piece) return;
  if (scratch.known_.size() >= kMostKnown) scratch.known_.clear();
  scratch.known_.emplace(piece, std::vector<int32_t>(tokens.begin() + before, tokens.end()));
}

void Bpe::start(std::string_view piece, std::vector<Scratch::Symbol>& symbols) const {
  symbols.clear();
  bool unknown_before = false;
  for (const char c : piece) {
    int32_t token = byte_tokens_[static_cast<unsigned char>(c)];
    const bool unknown = token == kNoToken;
    if (unknown) {
      if (!settings_.unknown || (settings_.fuse_unknown && unknown_before)) continue;
      token = *settings_.unknown;
    }
    unknown_before = unknown;
    const auto place = static_cast<int64_t>(symbols.size());
    symbols.push_back({token, place - 1, place + 1, true});
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

/// Notes the merge of the symbol at `place` with the next one, if there is such a merge.
void Bpe::push(Scratch& scratch, int64_t place) const {
  const Scratch::Symbol& left = scratch.symbols_[static_cast<size_t>(place)];
  if (left.next < 0) return;
  const auto found = merges_.find(pair_of(left.token, scratch.symbols_[static_cast<size_t>(left.next)].token));
  if (found == merges_.end()) return;
  scratch.heap_.push_back({found->second.rank, found->second.result, place});
}

void Bpe::merge(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols_;
  std::vector<Scratch::Candidate>& heap = scratch.heap_;
  heap.clear();
  for (size_t place = 0; place + 1 < symbols.size(); ++place) push(scratch, static_cast<int64_t>(place));
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    const Scratch::Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Scratch::Symbol& left = symbols[static_cast<size_t>(best.place)];
    if (!left.alive || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // A candidate is stale once its symbols were merged otherwise.
    const auto found = merges_.find(pair_of(left.token, right.token));
    if (found == merges_.end() || found->second.result != best.result) continue;
    left.token = best.result;
    left.next = right.next;
    right.alive = false;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = best.place;
    for (const int64_t place : {left.previous, best.place}) {
      const size_t before = heap.size();
      if (place >= 0) push(scratch, place);
      if (heap.size() > before) std::push_heap(heap.begin(), heap.end());
    }
  }
}

}  // namespace margay
