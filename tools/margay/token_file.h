#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace margay::cli {

/// Token ids of several sequences, [examples, columns], row-major.
struct TokenFile {
  int64_t examples = 0, columns = 0;
  std::vector<int32_t> ids;
};

/// Reads int32 or int64 [N, L] from an .npy file. Ids are 0 ... vocab_size - 1; targets may also be kIgnoredTarget.
/// Throws DataError naming the file, and the first id that is none.
TokenFile load_inputs(const std::string& path, int64_t vocab_size);
TokenFile load_targets(const std::string& path, int64_t vocab_size);

}  // namespace margay::cli
