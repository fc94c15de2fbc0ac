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
#include <vector>

#include "engine/scoped_value.h"

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
  /// Whether the memory can be read and written by the CPU.
  virtual bool on_host() const { return true; }
};

class MemoryPool;

/// Keeps freed memory for the next request instead of giving it back: first touch of fresh memory costs more than most
/// kernels that fill it. Best fit (the lowest address among equals), splitting, and merging of free neighbours: once
/// everything of a step is freed, what is free does not depend on the order of events, so that equal steps find the
/// same blocks again and take no new segments. Blocks up to kSmallBlock live in segments of their own so that they do
/// not break up large ones. Safe for use from several threads.
class CachingAllocator {
 public:
  struct Block;
  /// Memory that was handed out, and what the allocator needs to take it back.
  struct Allocation {
    void* data = nullptr;
    Block* block = nullptr;
  };

  explicit CachingAllocator(std::unique_ptr<SegmentSource> source);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /// At least `bytes`, booked under the current op (see OpScope). Where the system has no more, segments that are free
  /// as a whole are given back before it is asked again; then throws ResourceError that says what was asked for, live,
  /// peak and reserved. An exception leaves everything as it was.
  Allocation allocate(size_t bytes);
  void free(Allocation allocation) noexcept;
  /// Books memory that is in use under another op.
  void book(Allocation allocation, std::string_view op);

  MemoryCounters counters() const;
  /// Live and peak bytes by the op that allocated them; peak is each op's own.
  std::map<std::string, MemoryCounters> counters_by_op() const;
  /// Live bytes by op at the moment of the peak.
  std::map<std::string, int64_t> live_at_peak() const;
  /// Lets `peak` start again from what is live now.
  void reset_peak();
  /// Gives segments with nothing live in them back to the system; those of a MemoryPool stay.
  void release_unused();
  std::string_view name() const { return source_->name(); }

 private:
  friend class MemoryPool;
  static constexpr size_t kSmallBlock = size_t{64} << 10, kSmallSegment = size_t{1} << 20;

  struct BySize {
    using is_transparent = void;
    bool operator()(const Block* a, const Block* b) const;
    bool operator()(const Block* a, size_t bytes) const;
  };
  using FreeBlocks = std::set<Block*, BySize>;
  struct FreeLists {
    FreeBlocks small, large;
    FreeBlocks& of(bool is_small) { return is_small ? small : large; }
  };

  Block* take_segment(size_t bytes, bool small, MemoryPool* pool);
  Block* take_shared_segment(size_t bytes, bool small, MemoryPool& pool);
  void take_back(MemoryPool& pool) noexcept;
  Block* make_block();
  void retire(Block* block) noexcept;
  std::unordered_map<std::string_view, int64_t> live_by_op() const;
  void keep_peak() noexcept;
  void* reserve(size_t bytes, size_t& length, bool may_release);
  void split(Block* block, size_t bytes);
  Block* merge(Block* block);
  void release_free_segments();
  void forbid(void* begin, size_t bytes) const;
  void allow(void* begin, size_t bytes) const;

  std::unique_ptr<SegmentSource> source_;
  mutable std::mutex mutex_;
  FreeLists shared_;        // of all segments that are in no pool
  Block* spare_ = nullptr;  // blocks that stand for no memory now, linked by `next`
  MemoryCounters counters_;
  std::unordered_map<std::string_view, MemoryCounters> by_op_;
  std::unordered_map<std::string_view, int64_t> at_peak_;  // live bytes, kept by the first event after the peak
  bool is_at_peak_ = false;
};

/// Segments of an allocator which serve only what is allocated inside a PoolScope. Recorded work holds addresses in
/// them, and no other tensor gets these before the pool is gone; then the segments serve all again. Tensors in it may
/// outlive the pool, which may not outlive the allocator.
class MemoryPool {
 public:
  explicit MemoryPool(CachingAllocator& allocator) : allocator_(allocator) {}
  ~MemoryPool() { allocator_.take_back(*this); }
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

 private:
  friend class CachingAllocator;
  CachingAllocator& allocator_;
  CachingAllocator::FreeLists free_;
  std::vector<CachingAllocator::Block*> segments_;  // the first block of each, which is never merged into another
};

/// While it lives, what this thread takes from the pool's allocator comes from the pool.
class PoolScope {
 public:
  explicit PoolScope(MemoryPool& pool);

 private:
  ScopedValue<MemoryPool*> scope_;
};

/// Names the op that memory is booked under while the scope lives. `name` must outlive the process's allocations:
/// ops pass their registered name.
class OpScope {
 public:
  explicit OpScope(std::string_view name);
  /// The innermost scope of this thread, "other" without one.
  static std::string_view current();

 private:
  ScopedValue<std::string_view> scope_;
};

}  // namespace margay
