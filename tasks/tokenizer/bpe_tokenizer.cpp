#include "tasks/tokenizer/bpe_tokenizer.h"

#include "tasks/tokenizer/nfc.h"
#include "tasks/utf8.h"

namespace margay {
namespace {

/// Where a part of a text ends in it.
size_t end_in(std::string_view text, std::string_view part) {
  return static_cast<size_t>(part.data() - text.data()) + part.size();
}

}  // namespace

size_t BpeTokenizer::encode_part(std::string_view text, bool last, std::vector<int32_t>& tokens) const {
  const bool takes_parts = !parts_.add_prefix_space && parts_.pre_tokenizer.takes_parts() &&
                           parts_.raw_added.takes_parts() && parts_.normalized_added.takes_parts();
  if (!last && !takes_parts) return 0;
  Output out{tokens};
  size_t done = 0;
  while (done < text.size()) {
    const std::string_view rest = text.substr(done);
    const size_t valid = valid_utf8_prefix(rest);
    const bool open = !last && (valid == rest.size() || is_open_utf8(rest.substr(valid)));
    const size_t encoded = encode_text(rest.substr(0, valid), open, out);
    done += open ? encoded : valid;
    if (open || done == text.size()) break;
    parts_.bpe.encode(rest.substr(valid, 1), out.scratch, tokens);
    ++done;
  }
  return done;
}

size_t BpeTokenizer::encode_text(std::string_view text, bool open, Output& out) const {
  size_t done = 0;
  for (const AddedTokens::Part& part : parts_.raw_added.parts(text, open)) {
    done = end_in(text, part.text);
    if (part.id != AddedTokens::kNone) {
      out.tokens.push_back(part.id);
    } else {
      done -= part.text.size() - encode_unmatched(part.text, part.open, out);
    }
  }
  return done;
}

size_t BpeTokenizer::encode_unmatched(std::string_view text, bool open, Output& out) const {
  if (!parts_.normalize) return encode_normalized(text, open, out);
  const NormalizedText normalized = nfc(open ? text.substr(0, last_nfc_border(text)) : text);
  if (!open) {
    encode_normalized(normalized.text, false, out);
    return text.size();
  }
  // The next part must not start inside a stretch that normalisation has changed.
  const size_t tokens_before = out.tokens.size();
  std::string_view rest = normalized.text;
  for (;;) {
    const size_t encoded = encode_normalized(rest, true, out);
    const size_t source = normalized.source_of(encoded);
    if (source != std::string::npos) return source;
    out.tokens.resize(tokens_before);
    rest = rest.substr(0, encoded - 1);
    while (!rest.empty() && (static_cast<unsigned char>(rest.back()) & 0xC0) == 0x80) rest.remove_suffix(1);
  }
}

size_t BpeTokenizer::encode_normalized(std::string_view text, bool open, Output& out) const {
  size_t done = 0;
  const auto encode_piece = [&](std::string_view piece) { parts_.bpe.encode(piece, out.scratch, out.tokens); };
  for (const AddedTokens::Part& part : parts_.normalized_added.parts(text, open)) {
    done = end_in(text, part.text);
    if (part.id != AddedTokens::kNone) {
      out.tokens.push_back(part.id);
    } else if (parts_.add_prefix_space && !part.text.starts_with(' ')) {
      parts_.pre_tokenizer.split(' ' + std::string(part.text), part.open, encode_piece);
    } else {
      done -= part.text.size() - parts_.pre_tokenizer.split(part.text, part.open, encode_piece);
    }
  }
  return done;
}

std::string BpeTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) {
    if (token >= 0 && token < vocab_size()) text += parts_.token_bytes[static_cast<size_t>(token)];
  }
  return text;
}

}  // namespace margay
