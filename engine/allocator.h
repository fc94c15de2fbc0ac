#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace margay {

/// Bytes of tensor memory. `live` and `peak` count what was asked for, `reserved` what was taken from the system.
struct MemoryCounters {
  int64_t live = 0, peak = 0, reserved = 0;
};

/// Where an allocator takes whole segments of memory from.
class SegmentSource {
 public:
  virtual ~SegmentSource() = default;
  /// nullptr when there is no more.
  virtual void* reserve(size_t bytes) = 0;
  virtual void release(void* segment, size_t bytes) = 0;
  /// Name for messages, e.g. "cpu".
  virtual std::string_view name() const = 0;
  /// Alignment of every block.
  virtual size_t alignment() const = 0;
  /// Segments for large blocks are at least this long.
  virtual size_t large_segment() const = 0;
};

/// Keeps freed memory for the next request instead of giving it back: first touch of fresh memory costs more than most
/// kernels that fill it. Best fit, splitting, and merging of free neighbours; blocks up to kSmallBlock live in segments
/// of their own so that they do not break up large ones. Safe for use from several threads.
class CachingAllocator {
 public:
  explicit CachingAllocator(std::unique_ptr<SegmentSource> source);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /// At least `bytes`, booked under the current op (see OpScope). Throws ResourceError that says what was asked for,
  /// live and peak.
  void* allocate(size_t bytes);
  void free(void* block) noexcept;

  MemoryCounters counters() const;
  /// Live and peak bytes by the op that allocated them; peak is each op's own.
  std::map<std::string, MemoryCounters> counters_by_op() const;
  /// Lets `peak` start again from what is live now.
  void reset_peak();
  /// Gives segments with nothing live in them back to the system.
  void release_unused();

 private:
  static constexpr size_t kSmallBlock = size_t{64} << 10, kSmallSegment = size_t{1} << 20;

  struct Block {
    char* begin;
    size_t bytes;
    Block *previous, *next;  // neighbours in the same segment
    bool free, small;
    int64_t asked;
    std::string_view op;
  };
  struct BySize {
    using is_transparent = void;
    bool operator()(const Block* a, const Block* b) const {
      return std::pair(a->bytes, a->begin) < std::pair(b->bytes, b->begin);
    }
    bool operator()(const Block* a, size_t bytes) const { return a->bytes < bytes; }
  };
  using FreeBlocks = std::set<Block*, BySize>;

  Block* take_segment(size_t bytes, bool small);
  void split(Block* block, size_t bytes);
  Block* merge(Block* block);

  std::unique_ptr<SegmentSource> source_;
  mutable std::mutex mutex_;
  FreeBlocks free_small_, free_large_;
  std::unordered_map<void*, Block*> in_use_;
  MemoryCounters counters_;
  std::unordered_map<std::string_view, MemoryCounters> by_op_;
};

/// Names the op that memory is booked under while the scope lives. `name` must outlive the process's allocations:
/// ops pass their registered name.
class OpScope {
 public:
  explicit OpScope(std::string_view name);
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;
  /// The innermost scope of this thread, "other" without one.
  static std::string_view current();

 private:
  std::string_view outer_;
};

}  // namespace margay
