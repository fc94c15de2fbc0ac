#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace margay {

/// A program of the system that compresses its standard input to its standard output.
struct Compressor {
  std::string name;                  ///< "xz -9e"
  std::vector<std::string> command;  ///< the program, looked up in PATH, and its arguments
};

/// gzip -9, bzip2 -9, xz -9e.
const std::vector<Compressor>& compressors();

/// A compressor at work. Nothing is kept of what goes through it but the number of bytes.
class Compression {
 public:
  /// Nothing where the program is not installed. Throws ResourceError where the system cannot start one.
  static std::unique_ptr<Compression> start(const Compressor& compressor);
  ~Compression();
  Compression(const Compression&) = delete;
  Compression& operator=(const Compression&) = delete;

  /// Throws DataError naming the program where it has given up.
  void feed(std::string_view bytes);
  /// The bytes that came out, once all have gone in. Throws DataError where the program failed.
  int64_t finish();

 private:
  Compression(std::string name, int input) : name_(std::move(name)), input_(input) {}
  void drain(bool to_the_end);
  int wait();

  std::string name_;
  int pid_ = -1, input_, output_ = -1;  // the process, and our ends of its streams
  int64_t bytes_ = 0;
};

/// What a compressor makes of a held-out text, in bytes.
struct CompressedSize {
  std::optional<int64_t> alone;  ///< nothing where the program is not installed
  std::optional<int64_t> given;  ///< the training text and it together, less the training text; nothing without one
};

/// A text that hands out its bytes in pieces, as often as it is asked to.
using TextSource = std::function<void(const std::function<void(std::string_view)>& take)>;

/// Compresses a held-out text by itself and behind the training text (left out where there is none). Both are read
/// again for each, so that none is ever held in memory.
CompressedSize compressed_size(const Compressor& compressor, const TextSource& held_out, const TextSource& training);

}  // namespace margay
