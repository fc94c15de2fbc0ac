#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace margay {

/// The size of a regular file. Throws DataError for anything else.
int64_t regular_file_size(const std::string& path);

/// Reads bytes [begin, end) of a file, a part at a time, in memory that does not grow with the file. `take` gets a part
/// and whether it is the last one, and returns how many of its bytes it has done with; the next part starts behind
/// them. Where it can do nothing with a part, the next one is longer. Throws DataError for a file that cannot be read
/// or has become shorter.
void read_parts(const std::string& path, int64_t begin, int64_t end,
                const std::function<size_t(std::string_view part, bool last)>& take);

}  // namespace margay
