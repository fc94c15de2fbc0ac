#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/language_model.h"
#include "tasks/generate/sampler.h"
#include "tasks/tokenizer/tokenizer.h"

namespace margay {

struct GenerateOptions {
  int64_t tokens = 256;  ///< to add to each sample, at most
  int64_t count = 1;     ///< samples of the prompt, made side by side
  int64_t first = 0;     ///< number of the first one
  int64_t seed = 123;    ///< all 64 bits count
  SampleOptions sampling = {};
  std::vector<std::string> stop = {};  ///< a sample ends before the first of these in its text
  bool stop_at_end_of_text = true;     ///< a sample ends before the tokenizer's end of text
  /// Where learned positions end, the model starts anew behind the second half of what it may see; else that is an
  /// error.
  bool slide = true;
};

/// Why a sample ended.
enum class SampleEnd : uint8_t { length, end_of_text, stop_string, interrupted };
/// "length", "end_of_text", "stop_string" or "interrupted".
std::string_view to_string(SampleEnd end);

/// One continuation of a prompt.
struct GeneratedText {
  int64_t number = 0;           ///< the sample's
  std::vector<int32_t> tokens;  ///< all that were drawn, with one that ended it
  std::string text;             ///< bytes, without the prompt and what ended it
  SampleEnd end = SampleEnd::interrupted;
  double seconds = 0;  ///< to the end of the sample, the pass over the prompt included

  double tokens_per_second() const { return static_cast<double>(tokens.size()) / seconds; }
};

/// Told of samples as they grow.
class GenerateObserver {
 public:
  virtual ~GenerateObserver() = default;
  /// The next bytes of sample `index` of the batch, which may end within a character.
  virtual void on_text(int64_t /*index*/, std::string_view /*bytes*/) {}
  /// The sample is complete.
  virtual void on_end(int64_t /*index*/, const GeneratedText&) {}
  /// Asked before each token: true ends all samples there.
  virtual bool stop_requested() { return false; }
};

/// Lets a model go on with a prompt, `count` times side by side: the prompt in one pass, then token by token with the
/// caches of the mixers. An empty prompt stands for the tokenizer's end of text.
///
/// Sample `number` draws from the random stream (seed, number) alone. So a sample made by itself (count 1, first =
/// number) has the draws that it has in a batch, and the same text, except where a sum over a batch is rounded
/// otherwise than over one row and that decides a draw. Samples that have ended stay in the batch until the last one
/// has.
///
/// Throws ConfigError for options out of range, an empty prompt where there is no end of text, more tokens of the
/// tokenizer than the model has, and a text longer than learned positions unless it may slide; DivergedError for logits
/// that are not finite.
std::vector<GeneratedText> generate(const LanguageModel& model, const Tokenizer& tokenizer, std::string_view prompt,
                                    const GenerateOptions& options, GenerateObserver& observer);

}  // namespace margay
