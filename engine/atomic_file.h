#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "engine/file.h"

namespace margay {

/// Takes the content of a file that is being written, piece by piece.
class FileWriter {
 public:
  /// `file` must outlive the writer; `path` is for messages.
  FileWriter(const Descriptor& file, std::string path);
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Hands what is still buffered to the system.
  void flush();

 private:
  const Descriptor& file_;
  std::string path_, buffer_;
};

/// Replaces the file at `path` so that a reader, and a crash or power failure at any instant, sees either the old
/// content or all of the new: writes a temporary file beside it, syncs it, renames it over `path` and syncs the folder.
/// A file that was there keeps its permissions; a symbolic link keeps pointing to the file, which is replaced. Devices
/// and pipes are written straight through. On an error, and where `fill` throws, the old file stays and no temporary
/// one. Throws ResourceError for a full disk or a file too large, DataError for a path that cannot be written.
void write_file_atomically(const std::string& path, const std::function<void(FileWriter&)>& fill);
void write_file_atomically(const std::string& path, std::string_view content);

}  // namespace margay
