#include "tasks/train/folders.h"

#include <filesystem>
#include <system_error>

#include "engine/file.h"

namespace margay {

void make_folders(const std::string& path) {
  require_path(path);
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw_file_error(path, "cannot be made", error.value());
}

}  // namespace margay
