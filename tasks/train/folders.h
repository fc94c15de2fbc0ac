#pragma once
#include <string>

#include "engine/file.h"

namespace margay {

/// Makes a folder and those above it, where they are not there. Throws DataError or ResourceError naming it.
void make_folders(const std::string& path);

/// A folder, made where it is not there, that no other process works in while this lives. A file system that knows no
/// locks gives none, and its folders go unguarded.
class LockedFolder {
 public:
  /// `work` is what another process would be doing there, for the ConfigError that says so.
  LockedFolder(std::string path, const char* work);

  const std::string& path() const { return path_; }
  /// The path of a file in it.
  std::string file(const std::string& name) const;

 private:
  std::string path_;
  Descriptor lock_;
};

}  // namespace margay
