// A training step, repeated, must not take more memory from the system.

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "engine/op.h"
#include "ops/rms_norm.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

/// Bytes of address space of this process: mmap and brk show here, first touches do not.
int64_t address_space() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

void step(const Tensor& x, const Tensor& weight) {
  Tensor y = x;
  for (int layer = 0; layer < 8; ++layer) y = rms_norm(y, weight);
  y.backward(ones(y.shape()));
  for (const Tensor& tensor : {x, weight}) Tensor(tensor).zero_grad();
}

}  // namespace

TEST_CASE("a steady step takes no memory from the system") {
  Tensor x = ones({70, 501}), weight = ones({501});
  x.set_requires_grad();
  weight.set_requires_grad();
  CachingAllocator& allocator = cpu_backend().allocator();
  for (int i = 0; i < 3; ++i) step(x, weight);
  allocator.reset_peak();
  step(x, weight);
  const MemoryCounters before = allocator.counters();
  [[maybe_unused]] const int64_t space = address_space();
  for (int i = 0; i < 50; ++i) step(x, weight);
  const MemoryCounters after = allocator.counters();
  CHECK(after.live == before.live);
  CHECK(after.peak == before.peak);
  CHECK(after.reserved == before.reserved);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK(address_space() == space);  // the sanitizers keep books of their own
#endif
}

}  // namespace margay::test
