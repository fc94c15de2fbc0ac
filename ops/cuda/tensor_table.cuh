#pragma once
#include <algorithm>

#include "engine/cuda/launch.cuh"

namespace margay::cuda {

/// Part of a list of tensors, which a kernel takes by value: the list lies on the host, and a copy of it on the device
/// would have to live until the kernel has run. Entry: a struct with `size` and `first_block`, the number of blocks of
/// all tensors before it.
template <class Entry>
struct TableChunk {
  static constexpr int kMost = 4000 / static_cast<int>(sizeof(Entry));  // kernel parameters have 4 KB
  Entry entries[kMost];
  int count;
  int64_t first_block;

  /// The tensor that this block, `index` of the whole list, works on: the last that starts at or before it, so that it
  /// is not empty.
  __device__ int find(int64_t index) const {
    int low = 0, high = count;  // entries[low] starts at or before it, entries[high] does not
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (entries[middle].first_block <= index ? low : high) = middle;
    }
    return low;
  }
};

/// Starts kernel(chunk, arguments...) on every chunk of a list of `count` tensors with `blocks` blocks, with a block of
/// kThreads threads for each of those of the chunk.
template <class Entry, class... Parameters, class... Arguments>
void launch_table(Cuda context, const Entry* entries, int64_t count, int64_t blocks,
                  void (*kernel)(TableChunk<Entry>, Parameters...), const Arguments&... arguments) {
  for (int64_t begin = 0; begin < count; begin += TableChunk<Entry>::kMost) {
    const int64_t end = std::min<int64_t>(count, begin + TableChunk<Entry>::kMost);
    TableChunk<Entry> chunk{};
    std::copy(entries + begin, entries + end, chunk.entries);
    chunk.count = static_cast<int>(end - begin);
    chunk.first_block = entries[begin].first_block;
    const int64_t own = (end < count ? entries[end].first_block : blocks) - chunk.first_block;
    if (own > 0) launch(context, dim3(static_cast<unsigned>(own)), dim3(kThreads), kernel, chunk, arguments...);
  }
}

}  // namespace margay::cuda
