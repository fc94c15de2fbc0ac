#include "tasks/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/npy.h"
#include "tasks/tokenizer/bpe_trainer.h"
#include "tasks/tokenizer/part_reader.h"
#include "tools/margay/line_display.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr const char* kTokenizerHelp = "bytes, or a tokenizer.json";

/// All of standard input.
std::string read_input() {
  std::string text;
  std::array<char, 1 << 16> buffer{};
  for (;;) {
    const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_file_error("standard input", "cannot be read", errno);
    if (got == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
  }
}

std::string read_file(const std::string& path) {
  std::string text;
  read_parts(path, 0, regular_file_size(path), [&](std::string_view part, bool) {
    text += part;
    return part.size();
  });
  return text;
}

// ---- train -----------------------------------------------------------------------------------------------------

int run_train(const Arguments& words) {
  std::vector<std::string> paths;
  std::string out;
  BpeTrainerSettings settings;
  bool quiet = false;
  CommandLine line("tokenizer train", "Learns a byte-level BPE vocabulary from text files.");
  line.arguments("FILE", paths, "text; their order does not matter", 1);
  line.option("--vocab N", settings.vocab_size, 1, "tokens: <|endoftext|>, 256 bytes, and merges", true);
  line.option("--out FILE.json", out, "the tokenizer.json to write", true);
  line.option("--min-count N", settings.min_count, 1, "pairs that occur less often are not merged [2]");
  line.flag("--quiet", quiet, "print errors only");
  line.example("margay tokenizer train data/kjv.txt --vocab 4096 --out data/kjv-4096.json", "");
  if (!line.parse(words)) return 0;

  note_stop_signals();
  LineDisplay display(quiet);
  int64_t all_bytes = 0, done_bytes = 0;
  for (const std::string& path : paths) all_bytes += regular_file_size(path);
  BpeTrainer trainer;
  for (const std::string& path : paths) {
    read_parts(path, 0, regular_file_size(path), [&](std::string_view part, bool last) {
      const size_t done = stop_signal() == 0 ? trainer.add_part(part, last) : part.size();
      done_bytes += static_cast<int64_t>(done);
      const double share = static_cast<double>(done_bytes) / static_cast<double>(all_bytes);
      const std::string text = fmt::format("{:3.0f} %  {} distinct pieces", 100 * share, with_commas(trainer.pieces()));
      if (display.due(false)) display.show("reading", share, text, "reading " + text);
      return done;
    });
    if (stop_signal() != 0) return 128 + stop_signal();
  }
  int64_t learned = 0;
  const std::string json = trainer.train(settings, [&](int64_t tokens) {
    learned = tokens;
    const double share = static_cast<double>(tokens) / static_cast<double>(settings.vocab_size);
    const std::string text = fmt::format("{:3.0f} %  {} tokens", 100 * share, with_commas(tokens));
    if (display.due(false)) display.show("merging", share, text, "merging " + text);
    return stop_signal() == 0;
  });
  if (json.empty()) return 128 + stop_signal();
  write_file_atomically(out, json);
  display.print_line(fmt::format("{}: {} tokens of {} of text, {} distinct pieces", out, with_commas(learned),
                                 short_bytes(static_cast<double>(all_bytes)), with_commas(trainer.pieces())));
  return 0;
}

// ---- encode ----------------------------------------------------------------------------------------------------

int run_encode(const Arguments& words) {
  std::vector<std::string> paths;
  std::string name, out;
  bool json = false;
  CommandLine line("tokenizer encode",
                   "Prints the token ids of text: a line for each file, or one for standard input.");
  line.arguments("FILE", paths, "text; none: standard input");
  line.option("--tokenizer NAME", name, kTokenizerHelp, true);
  line.option("--out FILE.npy", out, "write int32 [1,L] instead, as `margay forward` reads it; for one text");
  line.flag("--json", json, "print one JSON object for each text: ids, bytes");
  line.example("margay tokenizer encode book.txt --tokenizer tokenizer.json --out inputs.npy", "");
  line.example("echo Hello | margay tokenizer encode --tokenizer tokenizer.json", "");
  if (!line.parse(words)) return 0;
  if (!out.empty() && (paths.size() > 1 || json)) throw ConfigError("--out takes one text, and no --json");

  const auto tokenizer = make_tokenizer(name);
  const auto print = [&](const std::string& text) {
    const std::vector<int32_t> ids = tokenizer->encode(text);
    if (!out.empty()) {
      save_npy(out, from_values(ids, {1, static_cast<int64_t>(ids.size())}));
    } else if (json) {
      print_out(nlohmann::ordered_json{{"bytes", text.size()}, {"ids", ids}}.dump() + '\n');
    } else {
      print_out(fmt::format("{}\n", fmt::join(ids, " ")));
    }
  };
  for (const std::string& path : paths) print(read_file(path));
  if (paths.empty()) print(read_input());
  return 0;
}

// ---- decode ----------------------------------------------------------------------------------------------------

/// Ids in text: numbers with white space, commas or brackets between them.
std::vector<int64_t> parse_ids(std::string_view text, const std::string& source) {
  constexpr std::string_view between = " \t\r\n,[]";
  std::vector<int64_t> ids;
  for (size_t at = 0; at < text.size();) {
    if (between.find(text[at]) != std::string_view::npos) {
      ++at;
      continue;
    }
    int64_t id = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
    if (error != std::errc()) {
      throw DataError(fmt::format("{}: must hold token ids, got {}", source, margay::quoted(text.substr(at, 20))));
    }
    ids.push_back(id);
    at = static_cast<size_t>(end - text.data());
  }
  return ids;
}

std::vector<int64_t> load_ids(const std::string& path) {
  if (!path.ends_with(".npy")) return parse_ids(read_file(path), quoted_path(path));
  const Tensor array = load_npy(path);
  if (array.dtype() != DType::i32 && array.dtype() != DType::i64) {
    throw DataError(fmt::format("{}: must hold integers, got {}", quoted_path(path), describe(array)));
  }
  return array.to(DType::i64).to_vector<int64_t>();
}

std::string decoded(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  std::vector<int32_t> tokens;
  for (const int64_t id : ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) {
      throw DataError(fmt::format("token ids must be from 0 to {}, got {}", tokenizer.vocab_size() - 1, id));
    }
    tokens.push_back(static_cast<int32_t>(id));
  }
  return tokenizer.decode(tokens);
}

int run_decode(const Arguments& words) {
  std::vector<std::string> paths;
  std::string name, out;
  CommandLine line("tokenizer decode", "Prints the text of token ids, byte for byte.");
  line.arguments("FILE", paths, "ids as text or .npy; none: standard input");
  line.option("--tokenizer NAME", name, kTokenizerHelp, true);
  line.option("--out FILE", out, "write the text there instead");
  line.example("margay tokenizer decode inputs.npy --tokenizer tokenizer.json", "");
  line.example("echo 15496 11 995 | margay tokenizer decode --tokenizer gpt2.json", "");
  if (!line.parse(words)) return 0;

  const auto tokenizer = make_tokenizer(name);
  std::string text;
  for (const std::string& path : paths) text += decoded(*tokenizer, load_ids(path));
  if (paths.empty()) text = decoded(*tokenizer, parse_ids(read_input(), "standard input"));
  if (out.empty()) {
    print_out(text);
  } else {
    write_file_atomically(out, text);
  }
  return 0;
}

// ---- the verb --------------------------------------------------------------------------------------------------

constexpr std::array<Verb, 3> kParts = {{{"train", "learn a vocabulary from text", run_train},
                                         {"encode", "text to token ids", run_encode},
                                         {"decode", "token ids to text", run_decode}}};

std::string help() {
  std::vector<std::vector<std::string>> rows;
  for (const Verb& part : kParts) rows.push_back({"  " + std::string(part.name), std::string(part.summary)});
  return "Byte-level BPE tokenizers, in the tokenizer.json format of the tokenizers package.\n\n"
         "Usage: margay tokenizer train|encode|decode ...\n\n" +
         table(rows) +
         "\nExamples\n"
         "  margay tokenizer train data/kjv.txt --vocab 4096 --out data/kjv-4096.json\n"
         "  margay tokenizer train --help\n";
}

int run(const Arguments& arguments) {
  std::vector<std::string_view> names;
  for (const Verb& part : kParts) {
    names.push_back(part.name);
    if (!arguments.empty() && arguments[0] == part.name) return part.run({arguments.begin() + 1, arguments.end()});
  }
  for (const std::string& word : arguments) {
    if (word != "--help" && word != "-h") continue;
    print_out(help());
    return 0;
  }
  if (arguments.empty()) throw ConfigError("train, encode or decode is missing; see margay tokenizer --help");
  throw ConfigError(fmt::format("unknown word {} after tokenizer; the nearest is \"{}\"", margay::quoted(arguments[0]),
                                nearest_name(arguments[0], names)));
}

}  // namespace

extern const Verb kTokenizer;
constinit const Verb kTokenizer = {"tokenizer", "learn a vocabulary; text to tokens and back", run};

}  // namespace margay::cli
