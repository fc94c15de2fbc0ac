#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace margay {

/// A regular file's bytes, mapped read-only: only the pages that are looked at are read.
/// Throws DataError naming the path where it is missing, unreadable, empty or no regular file, ResourceError where it
/// cannot be mapped for want of memory or descriptors. The file must not be shortened while it is mapped (the system
/// would answer a read with SIGBUS): whoever replaces it does so by rename, as write_file_atomically() does.
class MappedFile {
 public:
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace margay
