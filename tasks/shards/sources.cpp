#include "tasks/shards/sources.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/tokenizer/part_reader.h"

namespace margay {
namespace {

namespace fs = std::filesystem;

void list_folder(const std::string& folder, std::vector<std::string>& paths) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) entries.push_back(*at);
  if (error) throw_file_error(folder, "cannot be read", error.value());
  std::sort(entries.begin(), entries.end());
  for (const fs::directory_entry& entry : entries) {
    if (entry.path().filename().string().starts_with('.')) continue;
    const fs::file_type type = entry.symlink_status(error).type();
    if (type == fs::file_type::directory) list_folder(entry.path().string(), paths);
    if (type == fs::file_type::regular) paths.push_back(entry.path().string());
  }
}

/// A place in texts that follow each other.
struct Place {
  size_t file;
  int64_t offset;
};

/// Where the first line begins that starts behind `from`, and at most `reach` bytes later; `from` where there is none.
int64_t next_line(const TextFile& file, int64_t from, int64_t reach) {
  int64_t place = from, found = from;
  read_parts(file.path, from, std::min(file.size, from + reach), [&](std::string_view part, bool) {
    const size_t end = part.find('\n');
    if (found == from && end != std::string_view::npos) found = place + static_cast<int64_t>(end) + 1;
    place += static_cast<int64_t>(part.size());
    return part.size();
  });
  return found;
}

Place border(std::span<const TextFile> files, int64_t at, int64_t reach) {
  int64_t begin = 0;
  size_t inside = 0;  // the file that holds byte `at`
  while (begin + files[inside].size <= at) begin += files[inside++].size;
  if (begin == at) return {inside, 0};
  if (begin + files[inside].size <= at + reach && inside + 1 < files.size()) return {inside + 1, 0};
  return {inside, next_line(files[inside], at - begin, reach)};
}

}  // namespace

std::vector<TextFile> list_text_files(std::span<const std::string> paths) {
  std::vector<std::string> names;
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
      list_folder(path, names);
    } else {
      names.push_back(path);
    }
  }
  std::vector<TextFile> files;
  for (const std::string& name : names) {
    if (const int64_t size = regular_file_size(name); size > 0) files.push_back({name, size});
  }
  if (files.empty()) throw DataError("there is no text: all files are empty");
  return files;
}

std::array<std::vector<TextStretch>, 3> split_texts(std::span<const TextFile> files) {
  int64_t all = 0;
  for (const TextFile& file : files) all += file.size;
  const Place ends[3] = {border(files, all / 100 * 90 + all % 100 * 90 / 100, all / 100),
                         border(files, all / 100 * 95 + all % 100 * 95 / 100, all / 100),
                         {files.size() - 1, files.back().size}};
  std::array<std::vector<TextStretch>, 3> splits;
  Place at{0, 0};
  for (size_t split = 0; split < splits.size(); ++split) {
    const Place end = ends[split];
    for (; at.file < end.file; at = {at.file + 1, 0}) {
      splits[split].push_back({at.file, at.offset, files[at.file].size, true});
    }
    if (at.offset < end.offset) {
      splits[split].push_back({at.file, at.offset, end.offset, end.offset == files[at.file].size});
      at = end;
    }
  }
  return splits;
}

}  // namespace margay
