#pragma once
#include <string>

namespace margay {

/// Makes a folder and those above it, where they are not there. Throws DataError or ResourceError naming it.
void make_folders(const std::string& path);

}  // namespace margay
