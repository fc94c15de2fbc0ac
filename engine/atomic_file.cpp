#include "engine/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

namespace margay {
namespace {

constexpr size_t kBuffer = size_t{64} << 10;
constexpr std::string_view kCannotWrite = "cannot be written";

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

/// Where a symbolic link leads; other paths as they are.
std::string follow_link(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0 || !S_ISLNK(info.st_mode)) return path;
  const std::unique_ptr<char, decltype(&std::free)> target(::realpath(path.c_str(), nullptr), &std::free);
  if (!target) throw_file_error(path, kCannotWrite, errno);
  return target.get();
}

/// A new file of a name of its own, removed again unless it was renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target)
      : path_(unused_path(folder_of(target))),
        file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666)) {
    if (!file_.valid()) throw_file_error(target, kCannotWrite, errno);
  }
  ~TemporaryFile() {
    if (!renamed_ && file_.valid()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const Descriptor& file() const { return file_; }
  void rename_to(const std::string& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) throw_file_error(target, kCannotWrite, errno);
    renamed_ = true;
  }

 private:
  // A process that was killed may have left its file behind, and process numbers come back.
  static std::string unused_path(const std::string& folder) {
    static std::atomic<uint64_t> next{0};
    struct stat info {};
    for (;;) {
      std::string path =
          fmt::format("{}{}.margay-{}-{}.tmp", folder, folder.ends_with('/') ? "" : "/", ::getpid(), next++);
      if (::lstat(path.c_str(), &info) != 0) return path;
    }
  }

  std::string path_;
  Descriptor file_;
  bool renamed_ = false;
};

void fill_file(const Descriptor& file, const std::string& path, const std::function<void(FileWriter&)>& fill) {
  FileWriter writer(file, path);
  fill(writer);
  writer.flush();
  sync_file(file, path);
}

}  // namespace

FileWriter::FileWriter(const Descriptor& file, std::string path) : file_(file), path_(std::move(path)) {
  buffer_.reserve(kBuffer);
}

void FileWriter::write(const void* data, size_t bytes) {
  if (bytes > kBuffer - buffer_.size()) flush();
  if (bytes > kBuffer) return write_all(file_, path_, data, bytes);
  buffer_.append(static_cast<const char*>(data), bytes);
}

void FileWriter::flush() {
  write_all(file_, path_, buffer_.data(), buffer_.size());
  buffer_.clear();
}

void write_file_atomically(const std::string& path, const std::function<void(FileWriter&)>& fill) {
  require_path(path);
  const std::string target = follow_link(path);
  struct stat old {};
  const bool exists = ::stat(target.c_str(), &old) == 0;
  if (exists && S_ISDIR(old.st_mode)) throw_file_error(path, kCannotWrite, EISDIR);
  if (exists && !S_ISREG(old.st_mode)) {
    const Descriptor file(::open(target.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.valid()) throw_file_error(path, kCannotWrite, errno);
    return fill_file(file, path, fill);
  }
  TemporaryFile temporary(target);
  if (exists && ::fchmod(temporary.file().number(), old.st_mode & 07777) != 0)
    throw_file_error(path, kCannotWrite, errno);
  fill_file(temporary.file(), path, fill);
  temporary.rename_to(target);
  sync_folder(folder_of(target));
}

void write_file_atomically(const std::string& path, std::string_view content) {
  write_file_atomically(path, [content](FileWriter& writer) { writer.write(content); });
}

}  // namespace margay
