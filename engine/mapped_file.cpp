#include "engine/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "engine/error.h"
#include "engine/file.h"

namespace margay {

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  require_path(path_);
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (!file.valid() || ::fstat(file.number(), &info) != 0) throw_file_error(path_, "cannot be read", errno);
  if (S_ISDIR(info.st_mode)) throw_file_error(path_, "cannot be read", EISDIR);
  if (!S_ISREG(info.st_mode)) throw DataError(quoted_path(path_) + ": is not a regular file");
  if (info.st_size == 0) throw DataError(quoted_path(path_) + ": is empty");
  const auto size = static_cast<size_t>(info.st_size);
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (data == MAP_FAILED) throw_file_error(path_, "cannot be mapped", errno);
  data_ = data;
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace margay
