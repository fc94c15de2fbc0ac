// Recorded work of a GPU. Skipped, and counted as skipped, where there is no GPU.

#include "engine/capture.h"

#include <doctest/doctest.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

std::shared_ptr<MemoryPool> new_pool() { return std::make_shared<MemoryPool>(backend(kGpu).allocator()); }

std::unique_ptr<DeviceGraph> captured(const std::function<void()>& work) {
  return backend(kGpu).capture(new_pool(), work);
}

/// to = 2 from, over memory of its own.
void double_into(const Tensor& to, const Tensor& from) {
  const Tensor sum = from.clone();
  backend(kGpu).accumulate(sum.region(), from.region());
  to.copy_from(sum);
}

Tensor values(double value, int64_t size = 1000) { return full({size}, value, DType::f32, kGpu); }

/// Takes and writes over what memory of about this size is free.
Tensors scribble(int64_t size = 1000) {
  Tensors tensors;
  for (int i = 0; i < 20; ++i) tensors.push_back(values(std::numeric_limits<double>::quiet_NaN(), size));
  return tensors;
}

bool all_are(const Tensor& tensor, float value) {
  return tensor.to_vector<float>() == std::vector<float>(static_cast<size_t>(tensor.numel()), value);
}

}  // namespace

TEST_CASE("capture: work is recorded, and a replay runs it on what its tensors hold by then" *
          doctest::skip(no_gpu())) {
  for (const int64_t size : {int64_t{1000}, int64_t{100'000}}) {  // of small blocks, and of large ones
    const Tensor x = values(1, size), y = values(-1, size);
    const auto graph = captured([&] { double_into(y, x); });
    CHECK(all_are(y, -1));
    const Tensors others = scribble(size);
    graph->replay();
    CHECK(all_are(y, 2));
    x.fill(3);
    graph->replay();
    CHECK(all_are(y, 6));
    for (const Tensor& other : others) CHECK_FALSE(backend(kGpu).all_finite(other.region()));
  }
}

TEST_CASE("capture: a graph keeps what it uses from before" * doctest::skip(no_gpu())) {
  const Tensor y = values(-1);
  std::unique_ptr<DeviceGraph> graph;
  {
    const Tensor x = values(4);
    graph = captured([&] { double_into(y, x); });
  }
  const Tensors others = scribble();
  graph->replay();
  CHECK(all_are(y, 8));
}

TEST_CASE("capture: a tensor that was made in it may outlive the graph" * doctest::skip(no_gpu())) {
  const Tensor x = values(4);
  Tensor y;
  {
    const auto graph = captured([&] {
      const Tensor before = x.clone();
      y = x.clone();
    });
    graph->replay();
  }
  const Tensors others = scribble();
  CHECK(all_are(y, 4));
}

TEST_CASE("capture: graphs of one pool run after each other in any order" * doctest::skip(no_gpu())) {
  const auto pool = new_pool();
  const Tensor x = values(1), y = values(0), z = values(0);
  const auto first = backend(kGpu).capture(pool, [&] { double_into(y, x); });
  const auto second = backend(kGpu).capture(pool, [&] { double_into(z, y); });
  for (const float value : {1.0f, 2.0f, 5.0f}) {
    x.fill(static_cast<double>(value));
    first->replay();
    second->replay();
    CHECK(all_are(z, 4 * value));
  }
}

TEST_CASE("capture: the memory of a graph goes back when it dies, and is taken again" * doctest::skip(no_gpu())) {
  CachingAllocator& allocator = backend(kGpu).allocator();
  const Tensor x = values(1, 100'000), y = values(0, 100'000);
  int64_t live = 0, reserved = 0;
  for (int i = 0; i < 3; ++i) {
    const auto graph = captured([&] { double_into(y, x); });
    graph->replay();
    if (i == 0) {
      live = allocator.counters().live;
      reserved = allocator.counters().reserved;
    }
    CHECK(allocator.counters().live == live);
    CHECK(allocator.counters().reserved == reserved);
  }
}

TEST_CASE("capture: what needs the host is refused by name, and the device goes on" * doctest::skip(no_gpu())) {
  DeviceBackend& device = backend(kGpu);
  const Tensor x = values(1), y = values(0);
  const auto refusal = [&](const std::function<void()>& work) {
    const int64_t live = device.allocator().counters().live;
    std::string message;
    try {
      static_cast<void>(captured([&] {
        const OpScope scope("some_op");
        double_into(y, x);
        work();
      }));
    } catch (const CaptureError& error) {
      message = error.what();
    }
    CHECK(device.allocator().counters().live == live);
    CHECK(Capture::current() == nullptr);
    CHECK(all_are(y, 0));
    return message;
  };
  CHECK(refusal([&] { x.to_vector<float>(); }) == "cuda:0: a copy to the host cannot be recorded, in some_op");
  CHECK(refusal([&] { from_values({1.0f}, {1}, kGpu); }) ==
        "cuda:0: a copy from the host cannot be recorded, in some_op");
  CHECK(refusal([&] { device.synchronize(); }) == "cuda:0: a wait for the device cannot be recorded, in some_op");
  CHECK(refusal([&] { device.all_finite(x.region()); }) ==
        "cuda:0: a question for values cannot be recorded, in some_op");
  CHECK_THROWS_WITH_AS(static_cast<void>(captured([] { throw std::runtime_error("of its own"); })), "of its own",
                       std::runtime_error);
  CHECK_THROWS_AS(static_cast<void>(captured([] { static_cast<void>(captured([] {})); })), std::logic_error);
  CHECK_THROWS_AS(static_cast<void>(captured([] { empty({int64_t{1} << 50}, DType::f32, kGpu); })), ResourceError);
  double_into(y, x);
  CHECK(all_are(y, 2));
  const auto graph = captured([&] { double_into(x, y); });
  graph->replay();
  CHECK(all_are(x, 4));
}

TEST_CASE("capture: the CPU records nothing") {
  CHECK_FALSE(cpu_backend().can_capture());
  const auto pool = std::make_shared<MemoryPool>(cpu_backend().allocator());
  CHECK_THROWS_WITH_AS(static_cast<void>(cpu_backend().capture(pool, [] {})),
                       "cpu: work cannot be recorded on this device", CaptureError);
}

}  // namespace margay::test
