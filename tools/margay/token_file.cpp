#include "tools/margay/token_file.h"

#include <fmt/format.h>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/npy.h"
#include "tasks/task.h"

namespace margay::cli {
namespace {

template <class Id>
std::vector<int32_t> checked_ids(const std::string& path, const Tensor& array, int64_t vocab_size, bool targets) {
  const std::vector<Id> values = array.to_vector<Id>();
  std::vector<int32_t> ids(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const bool valid = (values[i] >= 0 && values[i] < vocab_size) || (targets && values[i] == kIgnoredTarget);
    if (!valid) {
      const auto columns = static_cast<size_t>(array.dim(1));
      throw DataError(fmt::format("{}: [{},{}] must be a token id below model.vocab_size = {}{}, got {}",
                                  quoted_path(path), i / columns, i % columns, vocab_size,
                                  targets ? fmt::format(" or {}", kIgnoredTarget) : "", values[i]));
    }
    ids[i] = static_cast<int32_t>(values[i]);
  }
  return ids;
}

TokenFile load(const std::string& path, int64_t vocab_size, bool targets) {
  const Tensor array = load_npy(path);
  if (array.ndim() != 2 || (array.dtype() != DType::i32 && array.dtype() != DType::i64)) {
    throw DataError(fmt::format("{}: must hold int32 [N,L], got {}", quoted_path(path), describe(array)));
  }
  return {array.dim(0), array.dim(1),
          array.dtype() == DType::i32 ? checked_ids<int32_t>(path, array, vocab_size, targets)
                                      : checked_ids<int64_t>(path, array, vocab_size, targets)};
}

}  // namespace

TokenFile load_inputs(const std::string& path, int64_t vocab_size) { return load(path, vocab_size, false); }
TokenFile load_targets(const std::string& path, int64_t vocab_size) { return load(path, vocab_size, true); }

}  // namespace margay::cli
