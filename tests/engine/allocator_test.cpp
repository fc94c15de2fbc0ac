#include "engine/allocator.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/op.h"
#include "engine/rng.h"
#include "ops/rms_norm.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace margay::test {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 64;
#else
constexpr size_t kRedZone = 0;
#endif
constexpr size_t kMegabyte = size_t{1} << 20;

/// Counts what is taken and given back, and has only so much.
class FakeSource : public SegmentSource {
 public:
  struct Log {
    int64_t reserved = 0, limit = int64_t{1} << 30;
    int segments = 0, reservations = 0;
  };
  explicit FakeSource(Log& log) : log_(log) {}
  void* reserve(size_t bytes) override {
    if (log_.reserved + static_cast<int64_t>(bytes) > log_.limit) return nullptr;
    log_.reserved += static_cast<int64_t>(bytes);
    ++log_.segments;
    ++log_.reservations;
    return std::aligned_alloc(4096, bytes);
  }
  void release(void* segment, size_t bytes) override {
    log_.reserved -= static_cast<int64_t>(bytes);
    --log_.segments;
    std::free(segment);
  }
  std::string_view name() const override { return "fake"; }
  size_t alignment() const override { return 64; }
  size_t large_segment() const override { return 4 * kMegabyte; }

 private:
  Log& log_;
};

CachingAllocator make(FakeSource::Log& log) { return CachingAllocator(std::make_unique<FakeSource>(log)); }

}  // namespace

TEST_CASE("freed memory is handed out again, and given back only when asked") {
  FakeSource::Log log;
  {
    CachingAllocator allocator = make(log);
    const auto small = allocator.allocate(100), large = allocator.allocate(kMegabyte);
    CHECK(log.segments == 2);  // small blocks do not break up large segments
    CHECK(reinterpret_cast<uintptr_t>(small.data) % 64 == 0);
    CHECK(reinterpret_cast<uintptr_t>(large.data) % 64 == 0);
    allocator.free(small);
    allocator.free(large);
    CHECK(allocator.counters().reserved == log.reserved);
    const auto again = allocator.allocate(kMegabyte);
    CHECK(again.data == large.data);
    CHECK(log.reservations == 2);
    allocator.release_unused();  // the large segment is in use
    CHECK(log.segments == 1);
    allocator.free(again);
    allocator.release_unused();
    CHECK(log.reserved == 0);
    CHECK(allocator.counters().reserved == 0);
    allocator.free(allocator.allocate(0));
  }
  CHECK(log.segments == 0);
}

TEST_CASE("neighbours that are free become one block again, in any order of freeing") {
  std::vector<std::vector<size_t>> orders = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}, {2, 0, 3, 1}};
  for (const auto& order : orders) {
    FakeSource::Log log;
    CachingAllocator allocator = make(log);
    std::vector<CachingAllocator::Allocation> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(allocator.allocate(kMegabyte - kRedZone));
    CHECK(log.segments == 1);
    for (const size_t i : order) allocator.free(blocks[i]);
    const auto whole = allocator.allocate(4 * kMegabyte - kRedZone);
    CHECK(whole.data == blocks[0].data);
    CHECK(log.reservations == 1);
    allocator.free(whole);
  }
}

TEST_CASE("the block that fits best is taken") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  const size_t kilobyte = 1024;
  const auto a = allocator.allocate(400 * kilobyte), b = allocator.allocate(100 * kilobyte);
  const auto c = allocator.allocate(200 * kilobyte), d = allocator.allocate(100 * kilobyte);
  allocator.free(a);
  allocator.free(c);
  const auto e = allocator.allocate(150 * kilobyte);
  CHECK(e.data == c.data);
  for (const auto& block : {b, d, e}) allocator.free(block);
}

TEST_CASE("equal steps find the same memory, whatever the order of freeing") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  RandomStream random(1, 2);
  std::vector<size_t> sizes(200);
  for (size_t& size : sizes) size = 1 + random.below(300000);
  std::vector<void*> first;
  for (int step = 0; step < 20; ++step) {
    std::vector<CachingAllocator::Allocation> live;
    std::vector<void*> seen;
    for (const size_t size : sizes) {
      live.push_back(allocator.allocate(size));
      seen.push_back(live.back().data);
    }
    if (step == 1) first = seen;
    if (step > 1) CHECK(seen == first);
    while (!live.empty()) {
      std::swap(live[random.below(static_cast<uint32_t>(live.size()))], live.back());
      allocator.free(live.back());
      live.pop_back();
    }
    if (step == 0) log.limit = log.reserved;  // from now on, nothing more may be taken
  }
  CHECK(allocator.counters().live == 0);
}

TEST_CASE("live blocks never overlap and keep their content") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  RandomStream random(3, 4);
  std::vector<std::pair<CachingAllocator::Allocation, size_t>> live;
  const auto check_and_free = [&](size_t i) {
    std::swap(live[i], live.back());
    const auto [block, size] = live.back();
    const auto* bytes = static_cast<const unsigned char*>(block.data);
    for (size_t k = 0; k < size; k += 997) REQUIRE(bytes[k] == static_cast<unsigned char>(size));
    REQUIRE(bytes[size - 1] == static_cast<unsigned char>(size));
    allocator.free(block);
    live.pop_back();
  };
  for (int i = 0; i < 5000; ++i) {
    if (live.size() > 100 || (!live.empty() && random.below(3) == 0))
      check_and_free(random.below(static_cast<uint32_t>(live.size())));
    const size_t size = 1 + random.below(random.below(2) ? 2000 : 200000);
    live.emplace_back(allocator.allocate(size), size);
    std::memset(live.back().first.data, static_cast<int>(size), size);
  }
  while (!live.empty()) check_and_free(live.size() - 1);
  CHECK(allocator.counters().live == 0);
}

TEST_CASE("counters, in all and by op") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  CHECK(OpScope::current() == "other");
  const auto a = allocator.allocate(1000);
  CachingAllocator::Allocation b, c;
  {
    const OpScope outer("matmul");
    b = allocator.allocate(500);
    {
      const OpScope inner("softmax");
      CHECK(OpScope::current() == "softmax");
      c = allocator.allocate(200);
    }
    CHECK(OpScope::current() == "matmul");
  }
  CHECK(allocator.counters().live == 1700);
  allocator.free(c);
  CHECK(allocator.counters().live == 1500);
  CHECK(allocator.counters().peak == 1700);
  auto by_op = allocator.counters_by_op();
  CHECK(by_op["other"].live == 1000);
  CHECK(by_op["matmul"].live == 500);
  CHECK(by_op["softmax"].live == 0);
  CHECK(by_op["softmax"].peak == 200);
  allocator.book(a, "embedding");
  by_op = allocator.counters_by_op();
  CHECK(by_op["other"].live == 0);
  CHECK(by_op["embedding"].live == 1000);
  allocator.reset_peak();
  CHECK(allocator.counters().peak == 1500);
  CHECK(allocator.counters_by_op()["softmax"].peak == 0);
  allocator.free(a);
  allocator.free(b);
  CHECK(allocator.counters().live == 0);
  CHECK(allocator.counters_by_op()["embedding"].live == 0);
}

TEST_CASE("the peak is remembered by op, however memory is freed after it") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  const auto allocate = [&](std::string_view op, size_t bytes) {
    const OpScope scope(op);
    return allocator.allocate(bytes);
  };
  using Bytes = std::map<std::string, int64_t>;
  const auto a = allocate("matmul", 500), b = allocate("softmax", 200);
  CHECK(allocator.live_at_peak() == Bytes{{"matmul", 500}, {"softmax", 200}});
  allocator.free(b);
  const auto c = allocate("other", 100);
  CHECK(allocator.live_at_peak() == Bytes{{"matmul", 500}, {"softmax", 200}});
  const auto d = allocate("linear", 300);
  CHECK(allocator.live_at_peak() == Bytes{{"matmul", 500}, {"other", 100}, {"linear", 300}});
  allocator.free(a);
  allocator.reset_peak();
  CHECK(allocator.live_at_peak() == Bytes{{"other", 100}, {"linear", 300}});
  allocator.free(c);
  allocator.free(d);
}

TEST_CASE("an op's result is booked under the op, but not the memory of an input that it is a view of") {
  CachingAllocator& allocator = cpu_backend().allocator();
  const int64_t before = allocator.counters_by_op()["rms_norm"].live;
  {
    const Tensor y = rms_norm(ones({50, 20}), ones({20}));
    CHECK(allocator.counters_by_op()["rms_norm"].live == before + 50 * 20 * 4);
  }
  CHECK(allocator.counters_by_op()["rms_norm"].live == before);
}

TEST_CASE("a pool serves its scope alone, and all again when it is gone") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log), another = make(log);
  for (const size_t size : {size_t{1000}, kMegabyte}) {
    CAPTURE(size);
    CachingAllocator::Allocation kept;
    void* inside = nullptr;
    {
      MemoryPool pool(allocator);
      {
        const PoolScope scope(pool);
        const auto a = allocator.allocate(size);
        inside = a.data;
        allocator.free(a);
        kept = allocator.allocate(size);
        CHECK(kept.data == inside);  // it is used again inside
        const auto elsewhere = another.allocate(size);
        CHECK(elsewhere.data != inside);
        another.free(elsewhere);
      }
      const auto outside = allocator.allocate(size);
      CHECK(outside.data != inside);
      allocator.free(outside);
      allocator.free(allocator.allocate(2 * size));
      const PoolScope scope(pool);
      const auto b = allocator.allocate(size);
      CHECK(b.data != outside.data);
      allocator.free(b);
    }
    allocator.free(kept);  // it has outlived the pool
    const int reservations = log.reservations;
    for (int i = 0; i < 2; ++i) {
      const auto again = allocator.allocate(i == 0 ? size : 2 * size);
      allocator.free(again);
    }
    CHECK(log.reservations == reservations);
  }
  CHECK(allocator.counters().live == 0);
  allocator.release_unused();
  CHECK(allocator.counters().reserved == 0);
}

TEST_CASE("a pool takes segments that are free as a whole before it asks the system") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  const auto part = allocator.allocate(kMegabyte), whole = allocator.allocate(4 * kMegabyte - kRedZone);
  CHECK(log.segments == 2);
  allocator.free(whole);
  {
    MemoryPool pool(allocator);
    const PoolScope scope(pool);
    const auto a = allocator.allocate(2 * kMegabyte);
    CHECK(a.data == whole.data);
    const auto b = allocator.allocate(3 * kMegabyte);  // the other segment has room, but is shared
    CHECK(log.segments == 3);
    allocator.free(a);
    allocator.free(b);
    allocator.release_unused();
    CHECK(log.segments == 3);
  }
  allocator.release_unused();
  CHECK(log.segments == 1);
  allocator.free(part);
}

TEST_CASE("where memory ends, a pool gives nothing of the others back") {
  FakeSource::Log log;
  log.limit = static_cast<int64_t>(6 * kMegabyte);
  CachingAllocator allocator = make(log);
  allocator.free(allocator.allocate(kMegabyte));
  {
    MemoryPool pool(allocator);
    const PoolScope scope(pool);
    CHECK_THROWS_AS(static_cast<void>(allocator.allocate(5 * kMegabyte)), ResourceError);
    CHECK(log.segments == 1);
    allocator.free(allocator.allocate(kMegabyte));
    CHECK(log.segments == 1);
  }
  allocator.free(allocator.allocate(5 * kMegabyte));
}

TEST_CASE("where memory ends, the error says how much was asked for, live and peak") {
  FakeSource::Log log;
  log.limit = static_cast<int64_t>(6 * kMegabyte);
  CachingAllocator allocator = make(log);
  const auto a = allocator.allocate(3 * kMegabyte);
  std::string message;
  try {
    static_cast<void>(allocator.allocate(10 * kMegabyte - kRedZone));
  } catch (const ResourceError& error) {
    message = error.what();
  }
  CHECK(message == "fake: out of memory: asked for 10485760 bytes, live 3145728, peak 3145728, reserved 4194304");
  CHECK(allocator.counters().live == static_cast<int64_t>(3 * kMegabyte));
  CHECK_THROWS_AS(static_cast<void>(allocator.allocate(size_t{1} << 62)), ResourceError);

  // The usual step of 4 MB does not fit any more, what is needed does.
  const auto b = allocator.allocate(kMegabyte + kMegabyte / 2);
  CHECK(log.reserved < log.limit);
  allocator.free(a);
  // 5 MB fit only if the free segment is given back first.
  allocator.free(b);
  const auto c = allocator.allocate(5 * kMegabyte);
  CHECK(log.segments == 1);
  allocator.free(c);
}

TEST_CASE("the allocator is safe to use from several threads") {
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 4; ++id) {
    threads.emplace_back([&allocator, id] {
      const OpScope scope(id % 2 ? "odd" : "even");
      RandomStream random(id, 5);
      for (int i = 0; i < 2000; ++i) {
        const size_t size = 1 + random.below(100000);
        const auto block = allocator.allocate(size);
        std::memset(block.data, static_cast<int>(id), size);
        allocator.free(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(allocator.counters().live == 0);
  CHECK(allocator.counters_by_op()["odd"].live == 0);
}

#if defined(__SANITIZE_ADDRESS__)
TEST_CASE("AddressSanitizer knows what may be touched") {
  const auto poisoned = [](const char* p) { return __asan_address_is_poisoned(p) != 0; };
  FakeSource::Log log;
  CachingAllocator allocator = make(log);
  const auto a = allocator.allocate(100), b = allocator.allocate(100);
  const char *const pa = static_cast<char*>(a.data), *const pb = static_cast<char*>(b.data);
  CHECK_FALSE(poisoned(pa));
  CHECK_FALSE(poisoned(pa + 99));
  CHECK(poisoned(pa + 100));
  CHECK(poisoned(pb - 1));
  allocator.free(a);
  CHECK(poisoned(pa));
  CHECK_FALSE(poisoned(pb));
  allocator.free(b);
  const Tensor t = zeros({3});
  CHECK(poisoned(reinterpret_cast<const char*>(t.data<float>() + 3)));
}
#endif

}  // namespace margay::test
