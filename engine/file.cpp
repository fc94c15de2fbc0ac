#include "engine/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <ctime>
#include <system_error>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {
namespace {

/// Holds back, from this thread, the signals by which a failing write would end the process, and swallows those that
/// came meanwhile. Both are sent to the thread that writes, so no other thread is touched.
class WriteSignalsBlocked {
 public:
  WriteSignalsBlocked() {
    sigemptyset(&blocked_);
    sigaddset(&blocked_, SIGXFSZ);
    sigaddset(&blocked_, SIGPIPE);
    sigpending(&pending_before_);
    pthread_sigmask(SIG_BLOCK, &blocked_, &mask_before_);
  }
  ~WriteSignalsBlocked() {
    const int error = errno;
    for (const int signal : {SIGXFSZ, SIGPIPE}) {
      if (sigismember(&pending_before_, signal) == 1) continue;
      sigset_t one;
      sigemptyset(&one);
      sigaddset(&one, signal);
      const timespec no_wait{};
      while (sigtimedwait(&one, nullptr, &no_wait) < 0 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
    errno = error;
  }
  WriteSignalsBlocked(const WriteSignalsBlocked&) = delete;
  WriteSignalsBlocked& operator=(const WriteSignalsBlocked&) = delete;

 private:
  sigset_t blocked_, pending_before_, mask_before_;
};

}  // namespace

Descriptor::~Descriptor() {
  if (valid()) ::close(number_);
}

std::string quoted_path(std::string_view path) {
  constexpr size_t longest = 4096;  // of the paths that Linux takes
  return quoted(path, longest);
}

void throw_file_error(std::string_view path, std::string_view what, int error) {
  const std::string message =
      fmt::format("{}: {}: {}", quoted_path(path), what, std::generic_category().message(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EIO:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      throw ResourceError(message);
    default:
      throw DataError(message);
  }
}

void require_path(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos)
    throw DataError(fmt::format("{}: is not the path of a file", quoted_path(path)));
}

void write_all(const Descriptor& file, std::string_view path, const void* data, size_t bytes) {
  const WriteSignalsBlocked blocked;
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file.number(), next, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_file_error(path, "cannot be written", written < 0 ? errno : EIO);
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

void sync_file(const Descriptor& file, std::string_view path) {
  int result = 0;
  do result = ::fsync(file.number());
  while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS)
    throw_file_error(path, "cannot be synced", errno);
}

void sync_folder(const std::string& folder) {
  require_path(folder);
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.valid()) return sync_file(descriptor, folder);
  // A folder may allow new names but not reading: then nothing can be synced.
  if (errno != EACCES) throw_file_error(folder, "cannot be opened", errno);
}

}  // namespace margay
