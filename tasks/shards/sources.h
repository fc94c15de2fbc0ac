#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace margay {

/// A text file, which is one document.
struct TextFile {
  std::string path;
  int64_t size = 0;  ///< bytes
};

/// Bytes of one file that belong to one split.
struct TextStretch {
  size_t file = 0;
  int64_t begin = 0, end = 0;
  bool ends_document = false;
};

/// The sizes of files. A folder stands for all regular files in it and below, by name; hidden ones and symbolic links
/// are left out, as are empty files. Throws DataError for what cannot be read, and where nothing is left.
std::vector<TextFile> list_text_files(std::span<const std::string> paths);

/// The training, validation and test part of texts that follow each other: the first 90 % of the bytes, the next 5 %,
/// the rest. Each border moves to the next start of a document, where one is near (within 1 % of all bytes), else to
/// the next start of a line, where one is near.
std::array<std::vector<TextStretch>, 3> split_texts(std::span<const TextFile> files);

}  // namespace margay
