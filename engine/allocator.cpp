#include "engine/allocator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/error.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace margay {
namespace {

thread_local std::string_view current_op = "other";
constinit thread_local MemoryPool* current_pool = nullptr;

// Under AddressSanitizer every block starts as NaN, or -1 for integers, and ends in a red zone, and free memory may not
// be touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 64;
#else
constexpr size_t kRedZone = 0;
#endif
constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void add(MemoryCounters& counters, int64_t bytes) {
  counters.live += bytes;
  counters.peak = std::max(counters.peak, counters.live);
}

}  // namespace

struct CachingAllocator::Block {
  char* begin = nullptr;
  size_t bytes = 0;
  bool small = false;                          // which kind of segment it lies in
  FreeLists* home = nullptr;                   // where it goes when it is free
  Block *previous = nullptr, *next = nullptr;  // neighbours in the same segment
  MemoryCounters* op = nullptr;                // whom it is booked under; none while it is free
  int64_t asked = 0;
  FreeBlocks::node_type place = {};  // its place in the set of free blocks, while it is not there
};

bool CachingAllocator::BySize::operator()(const Block* a, const Block* b) const {
  return std::pair(a->bytes, a->begin) < std::pair(b->bytes, b->begin);
}
bool CachingAllocator::BySize::operator()(const Block* a, size_t bytes) const { return a->bytes < bytes; }

OpScope::OpScope(std::string_view name) : scope_(current_op, name) {}
std::string_view OpScope::current() { return current_op; }

PoolScope::PoolScope(MemoryPool& pool) : scope_(current_pool, &pool) {}

CachingAllocator::CachingAllocator(std::unique_ptr<SegmentSource> source) : source_(std::move(source)) {}

CachingAllocator::~CachingAllocator() {
  release_unused();
  while (spare_) delete std::exchange(spare_, spare_->next);
}

// A block brings its place in the set of free blocks along, so that freeing it later allocates nothing and cannot fail.
CachingAllocator::Block* CachingAllocator::make_block() {
  if (spare_) {
    Block* const block = std::exchange(spare_, spare_->next);
    block->previous = block->next = nullptr;
    return block;
  }
  auto block = std::make_unique<Block>();
  FreeBlocks only;
  only.insert(block.get());
  block->place = only.extract(only.begin());
  return block.release();
}

void CachingAllocator::retire(Block* block) noexcept {
  block->next = spare_;
  spare_ = block;
}

void CachingAllocator::forbid([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) const {
#if defined(__SANITIZE_ADDRESS__)
  if (source_->on_host()) __asan_poison_memory_region(begin, bytes);
#endif
}

void CachingAllocator::allow([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) const {
#if defined(__SANITIZE_ADDRESS__)
  if (!source_->on_host()) return;
  __asan_unpoison_memory_region(begin, bytes);
  std::memset(begin, 0xff, bytes);
#endif
}

CachingAllocator::Allocation CachingAllocator::allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  MemoryCounters& op = by_op_[current_op];
  const size_t size = round_up(std::max<size_t>(bytes, 1) + kRedZone, source_->alignment());
  const bool small = size <= kSmallBlock;
  MemoryPool* const pool = current_pool && &current_pool->allocator_ == this ? current_pool : nullptr;
  FreeBlocks& free = (pool ? pool->free_ : shared_).of(small);
  const auto fit = free.lower_bound(size);
  Block* const block = fit != free.end() ? *fit : take_segment(size, small, pool);
  split(block, size);
  block->op = &op;
  block->asked = static_cast<int64_t>(bytes);
  const int64_t peak = counters_.peak;
  add(counters_, block->asked);
  add(op, block->asked);
  is_at_peak_ = is_at_peak_ || counters_.peak > peak;
  allow(block->begin, bytes);
  return {block->begin, block};
}

void CachingAllocator::free(Allocation allocation) noexcept {
  const std::lock_guard lock(mutex_);
  keep_peak();
  Block* block = allocation.block;
  counters_.live -= block->asked;
  std::exchange(block->op, nullptr)->live -= block->asked;
  block = merge(block);
  forbid(block->begin, block->bytes);
  block->home->of(block->small).insert(std::move(block->place));
}

void CachingAllocator::book(Allocation allocation, std::string_view op) {
  const std::lock_guard lock(mutex_);
  MemoryCounters& counters = by_op_[op];
  Block* const block = allocation.block;
  if (block->op == &counters) return;
  std::exchange(block->op, &counters)->live -= block->asked;
  add(counters, block->asked);
}

// Growing in steps keeps the number of segments small; where the system refuses a large step, the bare need is tried.
void* CachingAllocator::reserve(size_t bytes, size_t& length, bool may_release) {
  if (void* segment = source_->reserve(length)) return segment;
  length = round_up(bytes, kPage);
  if (void* segment = source_->reserve(length)) return segment;
  if (!may_release) return nullptr;
  release_free_segments();
  return source_->reserve(length);
}

// For a pool: a segment that others have used and that is free as a whole.
CachingAllocator::Block* CachingAllocator::take_shared_segment(size_t bytes, bool small, MemoryPool& pool) {
  FreeBlocks& shared = shared_.of(small);
  const auto whole = std::find_if(shared.lower_bound(bytes), shared.end(),
                                  [](const Block* block) { return !block->previous && !block->next; });
  if (whole == shared.end()) return nullptr;
  Block* const segment = *whole;
  pool.segments_.push_back(segment);
  segment->home = &pool.free_;
  pool.free_.of(small).insert(shared.extract(whole));
  return segment;
}

// A device that records work must not be waited for, as giving a segment back does: a pool goes without that.
CachingAllocator::Block* CachingAllocator::take_segment(size_t bytes, bool small, MemoryPool* pool) {
  if (pool) {
    if (Block* const shared = take_shared_segment(bytes, small, *pool)) return shared;
    pool->segments_.reserve(pool->segments_.size() + 1);
  }
  size_t length = small ? kSmallSegment : std::max(round_up(bytes, kHugePage), source_->large_segment());
  Block* const block = make_block();
  void* const segment = reserve(bytes, length, !pool);
  if (!segment) {
    retire(block);
    throw ResourceError(fmt::format("{}: out of memory: asked for {} bytes, live {}, peak {}, reserved {}",
                                    source_->name(), bytes, counters_.live, counters_.peak, counters_.reserved));
  }
  forbid(segment, length);
  counters_.reserved += static_cast<int64_t>(length);
  block->begin = static_cast<char*>(segment);
  block->bytes = length;
  block->small = small;
  block->home = pool ? &pool->free_ : &shared_;
  if (pool) pool->segments_.push_back(block);
  block->home->of(small).insert(std::move(block->place));
  return block;
}

void CachingAllocator::take_back(MemoryPool& pool) noexcept {
  const std::lock_guard lock(mutex_);
  for (Block* block : pool.segments_)
    for (; block; block = block->next) block->home = &shared_;
  shared_.small.merge(pool.free_.small);
  shared_.large.merge(pool.free_.large);
}

// Takes a free block out of the set of free blocks, and puts what it is too long by back in.
void CachingAllocator::split(Block* block, size_t bytes) {
  FreeBlocks& free = block->home->of(block->small);
  Block* const rest = block->bytes > bytes ? make_block() : nullptr;
  block->place = free.extract(free.find(block));
  if (!rest) return;
  rest->begin = block->begin + bytes;
  rest->bytes = block->bytes - bytes;
  rest->small = block->small;
  rest->home = block->home;
  rest->previous = block;
  rest->next = std::exchange(block->next, rest);
  if (rest->next) rest->next->previous = rest;
  block->bytes = bytes;
  free.insert(std::move(rest->place));
}

// Joins a block that has just become free with its free neighbours; the result is not in the set of free blocks.
CachingAllocator::Block* CachingAllocator::merge(Block* block) {
  FreeBlocks& free = block->home->of(block->small);
  const auto absorb_next = [this](Block* left) {
    Block* const right = left->next;
    left->bytes += right->bytes;
    left->next = right->next;
    if (left->next) left->next->previous = left;
    retire(right);
  };
  if (block->next && !block->next->op) {
    block->next->place = free.extract(free.find(block->next));
    absorb_next(block);
  }
  if (block->previous && !block->previous->op) {
    block = block->previous;
    block->place = free.extract(free.find(block));
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

std::map<std::string, int64_t> CachingAllocator::live_at_peak() const {
  const std::lock_guard lock(mutex_);
  const auto live = is_at_peak_ ? live_by_op() : at_peak_;
  return {live.begin(), live.end()};
}

std::unordered_map<std::string_view, int64_t> CachingAllocator::live_by_op() const {
  std::unordered_map<std::string_view, int64_t> live;
  for (const auto& [op, counters] : by_op_)
    if (counters.live > 0) live[op] = counters.live;
  return live;
}

// What is live at a peak stays so until the first block is freed.
void CachingAllocator::keep_peak() noexcept {
  if (!std::exchange(is_at_peak_, false)) return;
  try {
    at_peak_ = live_by_op();
  } catch (...) {  // no memory left for statistics
    at_peak_.clear();
  }
}

void CachingAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  counters_.peak = counters_.live;
  is_at_peak_ = true;
  for (auto& [op, counters] : by_op_) counters.peak = counters.live;
}

void CachingAllocator::release_unused() {
  const std::lock_guard lock(mutex_);
  release_free_segments();
}

void CachingAllocator::release_free_segments() {
  for (FreeBlocks* free : {&shared_.small, &shared_.large}) {
    for (auto it = free->begin(); it != free->end();) {
      if ((*it)->previous || (*it)->next) {
        ++it;
        continue;
      }
      Block* const segment = *it;
      segment->place = free->extract(it++);
      allow(segment->begin, segment->bytes);
      counters_.reserved -= static_cast<int64_t>(segment->bytes);
      source_->release(segment->begin, segment->bytes);
      retire(segment);
    }
  }
}

}  // namespace margay
