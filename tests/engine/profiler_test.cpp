#include "engine/profiler.h"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/flop_counter.h"
#include "ops/causal_attention.h"
#include "ops/linear.h"
#include "ops/softmax.h"
#include "ops/view.h"

namespace margay::test {
namespace {

const ProfileEvent& find(const Profiler& profiler, std::string_view name, bool backward) {
  for (const ProfileEvent& event : profiler.events())
    if (event.name == name && event.backward == backward) return event;
  throw std::runtime_error("no scope " + std::string(name));
}

}  // namespace

TEST_CASE("a profile holds every op, forward and backward, with its tensors' bytes and its FLOPs") {
  const Tensor x = ones({6, 8}).set_requires_grad(), w = ones({4, 8}).set_requires_grad();
  const Profiler profiler({});
  {
    const ProfileScope step("step");
    const Tensor y = softmax(linear(x, w), -1);
    y.backward(ones({6, 4}));
  }
  const ProfileEvent &step = find(profiler, "step", false), &forward = find(profiler, "linear", false),
                     &backward = find(profiler, "linear", true);
  CHECK(&step == &profiler.events().front());
  CHECK(step.kind == ScopeKind::phase);
  CHECK(step.parent == -1);
  CHECK(forward.kind == ScopeKind::op);
  CHECK(forward.parent == 0);
  CHECK(forward.bytes == 4 * (6 * 8 + 4 * 8 + 6 * 4));
  CHECK(forward.flops == 2 * 6 * 8 * 4);
  CHECK(backward.bytes == 4 * (6 * 4 + 6 * 8 + 4 * 8));
  CHECK(backward.flops == 2 * forward.flops);
  CHECK(find(profiler, "softmax", false).flops == 0);
  CHECK(profiler.events()[static_cast<size_t>(backward.parent)].name == "backward");
  for (const ProfileEvent& event : profiler.events()) {
    CHECK(event.end_ns >= event.begin_ns);
    if (event.parent < 0) continue;
    const ProfileEvent& parent = profiler.events()[static_cast<size_t>(event.parent)];
    CHECK(event.begin_ns >= parent.begin_ns);
    CHECK(event.end_ns <= parent.end_ns);
  }
}

TEST_CASE("a profile of a GPU has the FLOPs of products and of attention" * doctest::skip(cuda_device_count() == 0)) {
  const Device gpu{DeviceType::cuda};
  const Tensor x = ones({6, 8}).to(gpu).set_requires_grad(), w = ones({4, 8}).to(gpu).set_requires_grad();
  const Tensor q = ones({2, 3, 2, 4}).to(gpu), k = ones({2, 3, 5, 4}).to(gpu).set_requires_grad();
  const Profiler profiler(gpu);
  linear(x, w).backward(ones({6, 4}).to(gpu));
  causal_attention(q, k, k, {}, {}).backward(ones({2, 3, 2, 4}).to(gpu));
  NoGrad no_grad;
  causal_attention(q, k, k, {}, {.window = 3});
  CHECK(find(profiler, "linear", false).flops == 2 * 6 * 4 * 8);
  CHECK(find(profiler, "linear", true).flops == 2 * 2 * 6 * 4 * 8);
  const int64_t product = 2 * (2 * 3) * (4 + 5) * 4;  // two queries see four and five keys
  CHECK(find(profiler, "causal_attention", false).flops == 2 * product);
  CHECK(find(profiler, "causal_attention", true).flops == 5 * product);
  CHECK(profiler.events().back().flops == 2 * 2 * (2 * 3) * (4 + 4) * 4);
}

TEST_CASE("views move no bytes") {
  const Tensor x = ones({6, 8}).set_requires_grad();
  const Tensor y = transpose(softmax(x, -1), 0, 1);
  const Profiler profiler({});
  y.backward(ones({8, 6}));
  CHECK(find(profiler, "transpose", true).bytes == 0);
  CHECK(find(profiler, "softmax", true).bytes == 2 * 4 * 6 * 8);
}

TEST_CASE("live memory is what it was when a scope ended") {
  const int64_t before = cpu_backend().allocator().counters().live;
  const Profiler profiler({});
  Tensor kept;
  {
    const ProfileScope scope("one");
    kept = zeros({1000});
  }
  {
    const ProfileScope scope("none");
    kept = {};
  }
  CHECK(find(profiler, "one", false).live_bytes == before + 4000);
  CHECK(find(profiler, "none", false).live_bytes == before);
}

TEST_CASE("without a profiler nothing is recorded or counted, and a thread has one at a time") {
  const int64_t flops = FlopCounter::count();
  const Tensor x = ones({6, 8});
  linear(x, ones({4, 8}));
  CHECK(FlopCounter::count() == flops);
  CHECK(Profiler::current() == nullptr);
  {
    const ProfileScope begins_before("early");
    const Profiler profiler({});
    CHECK_THROWS_AS(Profiler({}), std::logic_error);
    CHECK(Profiler::current() == &profiler);
    CHECK(profiler.events().empty());
  }
  CHECK(Profiler::current() == nullptr);
}

}  // namespace margay::test
