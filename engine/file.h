#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace margay {

/// An open file descriptor, closed at the end of its scope.
class Descriptor {
 public:
  /// Takes over the result of open(); negative stands for none.
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  bool valid() const { return number_ >= 0; }

 private:
  int number_;
};

/// A path for a one-line message: quoted, control characters escaped.
std::string quoted_path(std::string_view path);

/// Throws what the failed system call deserves, as "PATH: WHAT: reason": ResourceError where disk space, memory or
/// descriptors ran out or the disk failed (ENOSPC, EDQUOT, EFBIG, EIO, ENOMEM, EMFILE, ENFILE), else DataError.
[[noreturn]] void throw_file_error(std::string_view path, std::string_view what, int error);

/// Throws DataError for text that no system call would take as the path of a file: empty, or with a NUL inside.
void require_path(const std::string& path);

/// Writes all bytes, whatever interrupts them. `path` is for messages. A file that may not grow further is an error
/// here and no signal (SIGXFSZ, SIGPIPE) of the process.
void write_all(const Descriptor& file, std::string_view path, const void* data, size_t bytes);

/// Waits until what was written is on the disk; does nothing for files that cannot be synced, such as pipes.
void sync_file(const Descriptor& file, std::string_view path);
/// The same for a folder: until then a new, renamed or removed name in it may be lost in a power failure.
void sync_folder(const std::string& folder);

}  // namespace margay
