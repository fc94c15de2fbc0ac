// Chains of ops far longer than any recursion could walk, on a thread whose stack is small.

#include <doctest/doctest.h>
#include <pthread.h>

#include <exception>
#include <functional>
#include <stdexcept>

#include "engine/debug.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

constexpr int kChain = 1'000'000;

/// Runs `body` on a thread with a stack of 256 kB; throws what it throws.
void run_on_small_stack(const std::function<void()>& body) {
  struct Task {
    const std::function<void()>& body;
    std::exception_ptr error = {};
  } task{body};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, size_t{256} << 10);
  pthread_t thread;
  const int failed = pthread_create(
      &thread, &attributes,
      [](void* argument) -> void* {
        auto& task = *static_cast<Task*>(argument);
        try {
          task.body();
        } catch (...) {
          task.error = std::current_exception();
        }
        return nullptr;
      },
      &task);
  pthread_attr_destroy(&attributes);
  if (failed) throw std::runtime_error("no thread could be started");
  pthread_join(thread, nullptr);
  if (task.error) std::rethrow_exception(task.error);
}

Tensor identity(const Tensor& x) {
  return tape::record("identity", x.clone(), {x},
                      [](const VjpContext& context) { return Tensors{context.cotangent()}; });
}

Tensor chain(const Tensor& x, int length) {
  Tensor y = x;
  for (int i = 0; i < length; ++i) y = identity(y);
  return y;
}

}  // namespace

TEST_CASE("a million ops: forward, backward and destruction") {
  double gradient = 0;
  int64_t nodes = 0;
  run_on_small_stack([&] {
    const Tensor x = tape::leaf({2});
    const Tensor y = chain(x, kChain);
    y.backward();
    gradient = x.grad().item();
    nodes = debug::count_nodes(y);
  });
  CHECK(gradient == 1);
  CHECK(nodes == kChain);
}

TEST_CASE("ops that are never walked are destroyed too") {
  run_on_small_stack([] { CHECK(chain(tape::leaf({2}), kChain / 10).requires_grad()); });
}

TEST_CASE("so are chains that hang together by closures and hooks") {
  constexpr int length = kChain / 10;
  run_on_small_stack([] {
    const Tensor x = tape::leaf({2});
    Tensor by_closure = tape::scale(x, 1), by_hook = tape::scale(x, 1);
    for (int i = 0; i < length; ++i) {
      // Keeps the tensor before it alive with its history, as no op should.
      by_closure = tape::record("keeps", x.clone(), {x}, [before = by_closure](const VjpContext& context) {
        return Tensors{context.cotangent()};
      });
      Tensor next = tape::scale(x, 1);
      next.register_hook([before = by_hook](const Tensor&) { return Tensor(); });
      by_hook = next;
    }
  });
}

}  // namespace margay::test
