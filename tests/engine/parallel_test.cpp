#include "engine/parallel.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

using namespace margay;

namespace {

/// How often each piece was called.
std::vector<int> calls(int threads, int64_t pieces) {
  std::vector<std::atomic<int>> counts(pieces);
  parallel_for(Cpu{threads}, pieces, [&](int64_t piece) { counts[piece].fetch_add(1); });
  return {counts.begin(), counts.end()};
}

}  // namespace

TEST_CASE("parallel: every piece is called once, with fewer and with more threads than cores") {
  for (const int threads : {1, 2, 3, 16})
    for (const int64_t pieces : {0, 1, 2, 5, 1000}) {
      CAPTURE(threads);
      CAPTURE(pieces);
      CHECK(calls(threads, pieces) == std::vector<int>(pieces, 1));
    }
}

TEST_CASE("parallel: what the pieces wrote is seen when the loop is over") {
  std::vector<int64_t> values(3);
  for (int64_t round = 0; round < 20000; ++round) {
    parallel_for(Cpu{3}, 3, [&](int64_t piece) { values[piece] = round + piece; });
    REQUIRE(values == std::vector<int64_t>{round, round + 1, round + 2});
  }
}

TEST_CASE("parallel: pieces of one loop run on several threads") {
  const int before = num_threads();
  set_num_threads(2);
  const bool has_threads = num_threads() == 2;  // a build may have none
  set_num_threads(before);
  if (!has_threads) return;
  std::atomic<int> started{0};
  parallel_for(Cpu{2}, 2, [&](int64_t) {
    started.fetch_add(1);
    while (started.load() < 2) std::this_thread::yield();  // for ever, if one thread had to do both
  });
  CHECK(started.load() == 2);
}

TEST_CASE("parallel: loops inside a piece, and of several threads at once, come out whole") {
  std::atomic<int> inner{0};
  parallel_for(Cpu{2}, 4, [&](int64_t) { parallel_for(Cpu{2}, 5, [&](int64_t) { inner.fetch_add(1); }); });
  CHECK(inner.load() == 20);

  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) parallel_for(Cpu{2}, 7, [&](int64_t) { total.fetch_add(1); });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total.load() == 3 * 200 * 7);
}

TEST_CASE("parallel: ranges cover the count, the last one shorter") {
  std::vector<std::atomic<int>> counts(10);
  parallel_ranges(Cpu{2}, 10, 4, [&](int64_t begin, int64_t end) {
    CHECK(end - begin <= 4);
    for (int64_t i = begin; i < end; ++i) counts[i].fetch_add(1);
  });
  CHECK(std::vector<int>(counts.begin(), counts.end()) == std::vector<int>(10, 1));
}
