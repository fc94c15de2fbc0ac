#include "tasks/tokenizer/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/names.h"
#include "tasks/hf/json_object.h"
#include "tasks/tokenizer/bpe_tokenizer.h"
#include "tasks/tokenizer/byte_alphabet.h"
#include "tasks/tokenizer/nfc.h"

namespace margay {
namespace {

constexpr int64_t kLargestId = (int64_t{1} << 21) - 1;
constexpr std::array<std::string_view, 6> kEndsOfText = {"<|endoftext|>", "<|end_of_text|>", "</s>",
                                                         "<eos>",         "<|eos|>",         "<|im_end|>"};

/// The tokens of a file, of the vocabulary and added ones.
struct Vocabulary {
  TextMap<int32_t> ids;            ///< by spelling
  std::vector<std::string> bytes;  ///< by id
  std::vector<bool> used;          ///< by id

  void add(int32_t id, std::string token_bytes) {
    const auto place = static_cast<size_t>(id);
    if (place >= bytes.size()) {
      bytes.resize(place + 1);
      used.resize(place + 1);
    }
    if (used[place]) throw DataError(fmt::format("two tokens have the id {}", id));
    used[place] = true;
    bytes[place] = std::move(token_bytes);
  }
};

Vocabulary read_vocabulary(const JsonObject& model) {
  Vocabulary vocabulary;
  for (auto& [spelling, id] : model.object("vocab").integers(0, kLargestId)) {
    const auto token = static_cast<int32_t>(id);
    vocabulary.add(token, bytes_of_spelling(spelling).value_or(spelling));
    vocabulary.ids.emplace(std::move(spelling), token);
  }
  if (vocabulary.ids.empty()) model.fail("vocab", "an object with tokens");
  return vocabulary;
}

int32_t id_of(const Vocabulary& vocabulary, std::string_view spelling) {
  const auto found = vocabulary.ids.find(spelling);
  if (spelling.empty() || found == vocabulary.ids.end()) {
    throw DataError(fmt::format("merges need the token {}, which is not in the vocabulary", quoted(spelling)));
  }
  return found->second;
}

Bpe read_bpe(const JsonObject& model, const Vocabulary& vocabulary) {
  if (model.text("type", "BPE") != "BPE") model.fail("type", "\"BPE\"");
  if (model.has("dropout") && model.number("dropout") != 0) model.fail("dropout", "null");
  for (const char* mark : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.text(mark, "").empty()) model.fail(mark, "null");
  }
  if (model.flag("byte_fallback", false)) model.fail("byte_fallback", "false, with byte-level tokens");
  Bpe::Settings settings;
  settings.fuse_unknown = model.flag("fuse_unk", false);
  if (model.has("unk_token")) {
    const auto unknown = vocabulary.ids.find(model.text("unk_token"));
    if (unknown == vocabulary.ids.end()) model.fail("unk_token", "a token of the vocabulary");
    settings.unknown = unknown->second;
  }
  if (model.flag("ignore_merges", false)) {
    for (const auto& [spelling, id] : vocabulary.ids) {
      if (const auto bytes = bytes_of_spelling(spelling)) settings.whole.emplace(*bytes, id);
    }
  }
  std::array<int32_t, 256> byte_tokens{};
  for (size_t byte = 0; byte < byte_tokens.size(); ++byte) {
    const auto found = vocabulary.ids.find(byte_spelling(static_cast<unsigned char>(byte)));
    byte_tokens[byte] = found == vocabulary.ids.end() ? Bpe::kNoToken : found->second;
  }
  std::vector<Bpe::Merge> merges;
  for (const auto& [left, right] : model.text_pairs("merges")) {
    merges.push_back({id_of(vocabulary, left), id_of(vocabulary, right), id_of(vocabulary, left + right)});
  }
  return {byte_tokens, merges, std::move(settings)};
}

struct Added {
  std::vector<AddedToken> raw, normalized;
  std::optional<int32_t> end_of_text;
};

Added read_added(const JsonObject& file, bool normalize, Vocabulary& vocabulary) {
  Added added;
  size_t end_rank = kEndsOfText.size();
  if (!file.has("added_tokens")) return added;
  for (const JsonObject& item : file.objects("added_tokens")) {
    AddedToken token{.id = static_cast<int32_t>(item.integer("id", 0, kLargestId)),
                     .content = item.text("content"),
                     .single_word = item.flag("single_word", false),
                     .strip_left = item.flag("lstrip", false),
                     .strip_right = item.flag("rstrip", false)};
    if (const auto known = vocabulary.ids.find(token.content); known == vocabulary.ids.end()) {
      vocabulary.add(token.id, token.content);
    } else if (known->second != token.id) {
      item.fail("id", fmt::format("{}, the token's in the vocabulary", known->second));
    } else {
      vocabulary.bytes[static_cast<size_t>(token.id)] = token.content;
    }
    const bool special = item.flag("special", false);
    const auto rank =
        static_cast<size_t>(std::find(kEndsOfText.begin(), kEndsOfText.end(), token.content) - kEndsOfText.begin());
    if (special && rank < end_rank) {
      end_rank = rank;
      added.end_of_text = token.id;
    }
    const bool normalized = item.flag("normalized", !special);
    if (normalized && normalize) {
      token.content = nfc(token.content).text;
      vocabulary.bytes[static_cast<size_t>(token.id)] = token.content;
    }
    (normalized ? added.normalized : added.raw).push_back(std::move(token));
  }
  return added;
}

/// Whether text is to be normalised: by NFC or not at all.
bool read_normalizer(const JsonObject& file) {
  if (!file.has("normalizer")) return false;
  const JsonObject normalizer = file.object("normalizer");
  if (normalizer.text("type") == "NFC") return true;
  if (normalizer.text("type") != "Sequence") normalizer.fail("type", "\"NFC\"");
  const std::vector<JsonObject> steps = normalizer.objects("normalizers");
  for (const JsonObject& step : steps) {
    if (step.text("type") != "NFC") step.fail("type", "\"NFC\"");
  }
  return !steps.empty();
}

SplitBehavior read_behavior(const JsonObject& split) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> names = {
      {{"Isolated", SplitBehavior::isolated},
       {"Removed", SplitBehavior::removed},
       {"MergedWithPrevious", SplitBehavior::merged_with_previous},
       {"MergedWithNext", SplitBehavior::merged_with_next},
       {"Contiguous", SplitBehavior::contiguous}}};
  const std::string wanted = split.text("behavior");
  for (const auto& [name, behavior] : names) {
    if (name == wanted) return behavior;
  }
  split.fail("behavior", "Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
}

SplitRule read_split(const JsonObject& split) {
  const JsonObject pattern = split.object("pattern");
  return {pattern.has("Regex") ? Pattern::expression(pattern.text("Regex")) : Pattern::literal(pattern.text("String")),
          read_behavior(split), split.flag("invert", false)};
}

struct Splitting {
  std::vector<SplitRule> rules;
  bool add_prefix_space = false;
};

void read_pre_tokenizer(const JsonObject& item, bool first, bool last, Splitting& splitting) {
  const std::string type = item.text("type");
  if ((type == "ByteLevel") != last) item.fail("type", last ? "\"ByteLevel\" at the end" : "another before the end");
  if (type == "ByteLevel") {
    splitting.add_prefix_space = item.flag("add_prefix_space", true);
    if (splitting.add_prefix_space && !first) item.fail("add_prefix_space", "false behind other pre-tokenizers");
    if (item.flag("use_regex", true)) splitting.rules.push_back({Pattern::expression(kGpt2Pattern)});
  } else if (type == "Split") {
    splitting.rules.push_back(read_split(item));
  } else if (type == "Digits") {
    const bool each = item.flag("individual_digits", false);
    splitting.rules.push_back({Pattern::expression(each ? R"(\p{N})" : R"(\p{N}+)")});
  } else {
    item.fail("type", "\"Split\", \"Digits\" or \"ByteLevel\"");
  }
}

Splitting read_splitting(const JsonObject& file) {
  const JsonObject pre_tokenizer = file.object("pre_tokenizer");
  Splitting splitting;
  if (pre_tokenizer.text("type") != "Sequence") {
    read_pre_tokenizer(pre_tokenizer, true, true, splitting);
    return splitting;
  }
  const std::vector<JsonObject> steps = pre_tokenizer.objects("pretokenizers");
  if (steps.empty()) pre_tokenizer.fail("pretokenizers", "a list that ends with \"ByteLevel\"");
  for (size_t i = 0; i < steps.size(); ++i) {
    read_pre_tokenizer(steps[i], i == 0, i + 1 == steps.size(), splitting);
  }
  return splitting;
}

void check_decoder(const JsonObject& file) {
  const JsonObject decoder = file.object("decoder");
  if (decoder.text("type") == "ByteLevel") return;
  if (decoder.text("type") != "Sequence") decoder.fail("type", "\"ByteLevel\"");
  const std::vector<JsonObject> steps = decoder.objects("decoders");
  if (steps.size() != 1 || steps[0].text("type") != "ByteLevel")
    decoder.fail("decoders", "a list of one \"ByteLevel\"");
}

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer(std::string json, const std::string& path) {
  const JsonObject file = JsonObject::parse(json, path);
  const JsonObject model = file.object("model");
  check_decoder(file);
  try {
    const bool normalize = read_normalizer(file);
    Splitting splitting = read_splitting(file);
    Vocabulary vocabulary = read_vocabulary(model);
    Bpe bpe = read_bpe(model, vocabulary);
    Added added = read_added(file, normalize, vocabulary);
    return std::make_unique<BpeTokenizer>(
        BpeTokenizer::Parts{.json = std::move(json),
                            .bpe = std::move(bpe),
                            .token_bytes = std::move(vocabulary.bytes),
                            .raw_added = AddedTokens(std::move(added.raw)),
                            .normalized_added = AddedTokens(std::move(added.normalized)),
                            .normalize = normalize,
                            .add_prefix_space = splitting.add_prefix_space,
                            .pre_tokenizer = PreTokenizer(std::move(splitting.rules)),
                            .end_of_text = added.end_of_text});
  } catch (const DataError& error) {
    const std::string message = error.what(), name = quoted_path(path);
    if (message.starts_with(name)) throw;
    throw DataError(fmt::format("{}: {}", name, message));
  }
}

}  // namespace margay
