#include "engine/allocator.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace margay {
namespace {

thread_local std::string_view current_op = "other";

// Under AddressSanitizer every block ends in a red zone, and free memory may not be touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 64;
void forbid(void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void allow(void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
#else
constexpr size_t kRedZone = 0;
void forbid(void*, size_t) {}
void allow(void*, size_t) {}
#endif

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void add(MemoryCounters& counters, int64_t bytes) {
  counters.live += bytes;
  counters.peak = std::max(counters.peak, counters.live);
}

}  // namespace

OpScope::OpScope(std::string_view name) : outer_(current_op) { current_op = name; }
OpScope::~OpScope() { current_op = outer_; }
std::string_view OpScope::current() { return current_op; }

CachingAllocator::CachingAllocator(std::unique_ptr<SegmentSource> source) : source_(std::move(source)) {}

CachingAllocator::~CachingAllocator() { release_unused(); }

void* CachingAllocator::allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const size_t size = round_up(std::max<size_t>(bytes, 1) + kRedZone, source_->alignment());
  const bool small = size <= kSmallBlock;
  FreeBlocks& pool = small ? free_small_ : free_large_;
  const auto fit = pool.lower_bound(size);
  Block* block = fit != pool.end() ? *fit : take_segment(size, small);
  pool.erase(block);
  split(block, size);
  block->free = false;
  block->asked = static_cast<int64_t>(bytes);
  block->op = current_op;
  in_use_.emplace(block->begin, block);
  add(counters_, block->asked);
  add(by_op_[block->op], block->asked);
  allow(block->begin, bytes);
  return block->begin;
}

void CachingAllocator::free(void* begin) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = in_use_.find(begin);
  Block* block = found->second;
  in_use_.erase(found);
  counters_.live -= block->asked;
  by_op_[block->op].live -= block->asked;
  block->free = true;
  block = merge(block);
  forbid(block->begin, block->bytes);
  (block->small ? free_small_ : free_large_).insert(block);
}

// Growing in steps keeps the number of segments small; where the system refuses a large step, the bare need is tried.
CachingAllocator::Block* CachingAllocator::take_segment(size_t bytes, bool small) {
  size_t length = small ? kSmallSegment : std::max(round_up(bytes, size_t{2} << 20), source_->large_segment());
  void* segment = source_->reserve(length);
  if (!segment && length > bytes) segment = source_->reserve(length = round_up(bytes, size_t{4096}));
  if (!segment) {
    throw ResourceError(fmt::format("{}: out of memory: asked for {} bytes, live {}, peak {}, reserved {}",
                                    source_->name(), bytes, counters_.live, counters_.peak, counters_.reserved));
  }
  forbid(segment, length);
  counters_.reserved += static_cast<int64_t>(length);
  auto* block = new Block{static_cast<char*>(segment), length, nullptr, nullptr, true, small, 0, {}};
  (small ? free_small_ : free_large_).insert(block);
  return block;
}

void CachingAllocator::split(Block* block, size_t bytes) {
  if (block->bytes - bytes < source_->alignment()) return;
  auto* rest = new Block{block->begin + bytes, block->bytes - bytes, block, block->next, true, block->small, 0, {}};
  if (rest->next) rest->next->previous = rest;
  block->next = rest;
  block->bytes = bytes;
  (block->small ? free_small_ : free_large_).insert(rest);
}

CachingAllocator::Block* CachingAllocator::merge(Block* block) {
  FreeBlocks& pool = block->small ? free_small_ : free_large_;
  const auto absorb_next = [](Block* left) {
    Block* right = left->next;
    left->bytes += right->bytes;
    left->next = right->next;
    if (left->next) left->next->previous = left;
    delete right;
  };
  if (block->next && block->next->free) {
    pool.erase(block->next);
    absorb_next(block);
  }
  if (block->previous && block->previous->free) {
    block = block->previous;
    pool.erase(block);
    absorb_next(block);
  }
  return block;
}

MemoryCounters CachingAllocator::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

std::map<std::string, MemoryCounters> CachingAllocator::counters_by_op() const {
  const std::lock_guard lock(mutex_);
  return {by_op_.begin(), by_op_.end()};
}

void CachingAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  counters_.peak = counters_.live;
  for (auto& [op, counters] : by_op_) counters.peak = counters.live;
}

void CachingAllocator::release_unused() {
  const std::lock_guard lock(mutex_);
  for (FreeBlocks* pool : {&free_small_, &free_large_}) {
    for (auto it = pool->begin(); it != pool->end();) {
      Block* block = *it;
      const bool whole = !block->previous && !block->next;
      it = whole ? pool->erase(it) : std::next(it);
      if (!whole) continue;
      allow(block->begin, block->bytes);
      counters_.reserved -= static_cast<int64_t>(block->bytes);
      source_->release(block->begin, block->bytes);
      delete block;
    }
  }
}

}  // namespace margay
