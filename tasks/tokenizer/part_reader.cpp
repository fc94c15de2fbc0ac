#include "tasks/tokenizer/part_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/error.h"
#include "engine/file.h"

namespace margay {
namespace {

constexpr size_t kPart = size_t{1} << 20;
constexpr const char* kCannotRead = "cannot be read";

int open_file(const std::string& path) {
  require_path(path);
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not wait for its writer
}

int64_t size_of(const Descriptor& file, const std::string& path) {
  struct stat info {};
  if (!file.valid() || ::fstat(file.number(), &info) != 0) throw_file_error(path, kCannotRead, errno);
  if (S_ISDIR(info.st_mode)) throw_file_error(path, kCannotRead, EISDIR);
  if (!S_ISREG(info.st_mode)) throw DataError(quoted_path(path) + ": is not a regular file");
  return info.st_size;
}

/// Appends `count` bytes from place `at` of the file.
void append(const Descriptor& file, const std::string& path, int64_t at, size_t count, std::string& buffer) {
  size_t filled = buffer.size();
  buffer.resize(filled + count);
  while (filled < buffer.size()) {
    const ssize_t got = ::pread(file.number(), buffer.data() + filled, buffer.size() - filled, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_file_error(path, kCannotRead, errno);
    if (got == 0) throw DataError(quoted_path(path) + ": became shorter while it was read");
    filled += static_cast<size_t>(got);
    at += got;
  }
}

}  // namespace

int64_t regular_file_size(const std::string& path) { return size_of(Descriptor(open_file(path)), path); }

void read_parts(const std::string& path, int64_t begin, int64_t end,
                const std::function<size_t(std::string_view part, bool last)>& take) {
  const Descriptor file(open_file(path));
  size_of(file, path);
  std::string buffer;  // bytes [begin, begin + buffer.size())
  size_t wanted = kPart;
  while (begin < end) {
    const auto size = static_cast<size_t>(std::min<int64_t>(end - begin, static_cast<int64_t>(wanted)));
    append(file, path, begin + static_cast<int64_t>(buffer.size()), size - buffer.size(), buffer);
    const bool last = begin + static_cast<int64_t>(size) == end;
    const size_t done = take(buffer, last);
    if (last) return;
    wanted = done == 0 ? 2 * wanted : std::max(kPart, size - done + kPart / 2);
    buffer.erase(0, done);
    begin += static_cast<int64_t>(done);
  }
}

}  // namespace margay
