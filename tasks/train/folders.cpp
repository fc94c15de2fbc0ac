#include "tasks/train/folders.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/error.h"

namespace margay {
namespace {

int make_and_open(const std::string& path) {
  make_folders(path);
  const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) throw_file_error(path, "cannot be opened", errno);
  return folder;
}

}  // namespace

void make_folders(const std::string& path) {
  require_path(path);
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw_file_error(path, "cannot be made", error.value());
}

LockedFolder::LockedFolder(std::string path, const char* work) : path_(std::move(path)), lock_(make_and_open(path_)) {
  if (::flock(lock_.number(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw ConfigError(fmt::format("{}: another process is {} there", quoted_path(path_), work));
  }
}

std::string LockedFolder::file(const std::string& name) const { return (std::filesystem::path(path_) / name).string(); }

}  // namespace margay
