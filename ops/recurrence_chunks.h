#pragma once
#include <algorithm>
#include <cstdint>

namespace margay::kernels {

/// How the GPU cuts the T tokens of a recurrence over states [f,dv] (ops/cuda/recurrence.cuh) into chunks that are
/// walked over at the same time: as many as fill a large GPU together with the heads, but none so short that the states
/// between them take more memory than keys and values.
struct RecurrenceChunks {
  int64_t tokens;  // of a chunk; the last may have fewer
  int64_t count;   // at least 1

  static constexpr int64_t kBlockColumns = 32;  // of a state, in a block of threads
  static constexpr int64_t kBlocks = 1024;      // about 8 for each multiprocessor
  static constexpr int64_t kFewestTokens = 64;

  static RecurrenceChunks one(int64_t T) { return {std::max<int64_t>(T, 1), 1}; }
  static RecurrenceChunks cut(int64_t heads, int64_t T, int64_t f, int64_t dv) {
    const int64_t blocks = heads * ((std::min(f, dv) + kBlockColumns - 1) / kBlockColumns);
    const int64_t most = std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, blocks));
    const int64_t fewest_tokens = std::max(kFewestTokens, f * dv / std::max<int64_t>(1, f + dv));
    const int64_t tokens = std::max(fewest_tokens, (T + most - 1) / most);
    return {tokens, std::max<int64_t>(1, (T + tokens - 1) / tokens)};
  }
  /// Neighbouring chunks of all heads, between which there is a state.
  int64_t borders(int64_t heads) const { return heads * (count - 1); }
};

}  // namespace margay::kernels
