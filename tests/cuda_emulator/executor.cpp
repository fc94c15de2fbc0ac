#include "tests/cuda_emulator/executor.h"

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

namespace cuda_emulator {
namespace {

constexpr size_t kStack = size_t{256} << 10;
constexpr unsigned kWarp = 32;

enum class State : uint8_t { idle, ready, at_block_barrier, at_warp_barrier };

/// A stack on which threads run, one after the other until one has to wait. A context is only what begins on the stack:
/// from then on jumps change sides, which unlike swapcontext() ask nothing of the system.
struct Fiber {
  ucontext_t context;
  jmp_buf place;  // where it waits
  bool has_begun = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::idle;
  unsigned thread = 0;
};

/// One block at a time, on the host's thread that launched it. Shared memory is static and not a thread's own: glibc
/// takes a thread's own memory out of its stack, which a small stack does not have room for.
class Executor {
 public:
  void run(dim3 grid, dim3 block, const std::function<void()>& thread) {
    const std::lock_guard lock(one_grid_);
    thread_ = &thread;
    gridDim = grid;
    blockDim = block;
    threads_ = block.x * block.y * block.z;
    uint64_t number = 0;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = {x, y, z};
          run_block(number++ % 2 == 1);
        }
      }
    }
  }

  void wait(State state) {
    Fiber* const self = running_;
    self->state = state;
    if (_setjmp(self->place) == 0) _longjmp(scheduler_, 1);
  }

  unsigned lane() const { return running_->thread % kWarp; }
  void* slot(unsigned lane) { return slots_[running_->thread / kWarp * kWarp + lane].bytes; }
  bool is_live(unsigned lane) const {
    const unsigned thread = running_->thread / kWarp * kWarp + lane;
    return thread < threads_ && !ended_[thread];
  }

 private:
  struct alignas(16) Slot {
    char bytes[32];
  };

  void run_block(bool descending) {
    descending_ = descending;
    started_ = 0;
    ended_.assign(threads_, false);
    slots_.resize((threads_ + kWarp - 1) / kWarp * kWarp);
    for (;;) {
      if (Fiber* const fiber = find(State::ready)) {
        resume(*fiber);
      } else if (failure_) {
        for (const auto& fiber : fibers_) fiber->state = State::idle;
        std::rethrow_exception(std::exchange(failure_, nullptr));
      } else if (started_ < threads_) {
        start(free_fiber());
      } else if (std::none_of(fibers_.begin(), fibers_.end(), [](const auto& f) { return f->state != State::idle; })) {
        return;
      } else if (!release_warp() && !release_block()) {
        for (const auto& fiber : fibers_) fiber->state = State::idle;
        throw std::logic_error("the threads of a block wait at different barriers");
      }
    }
  }

  /// Ends the wait of a warp whose threads have all come. Returns whether there was one.
  bool release_warp() {
    for (const auto& fiber : fibers_) {
      if (fiber->state != State::at_warp_barrier) continue;
      const unsigned warp = fiber->thread / kWarp;
      const auto same_warp = [&](const auto& f) { return f->state != State::idle && f->thread / kWarp == warp; };
      if (std::any_of(fibers_.begin(), fibers_.end(),
                      [&](const auto& f) { return same_warp(f) && f->state != State::at_warp_barrier; }))
        continue;
      for (const auto& f : fibers_)
        if (same_warp(f)) f->state = State::ready;
      return true;
    }
    return false;
  }

  bool release_block() {
    if (find(State::at_warp_barrier)) return false;
    for (const auto& fiber : fibers_)
      if (fiber->state == State::at_block_barrier) fiber->state = State::ready;
    return true;
  }

  Fiber* find(State state) const {
    const auto found = std::find_if(fibers_.begin(), fibers_.end(), [&](const auto& f) { return f->state == state; });
    return found == fibers_.end() ? nullptr : found->get();
  }

  Fiber& free_fiber() {
    if (Fiber* const idle = find(State::idle)) return *idle;
    fibers_.push_back(std::make_unique<Fiber>());
    return *fibers_.back();
  }

  void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.has_begun = false;
    resume(fiber);
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    fiber.state = State::ready;
    set_index(fiber.thread);
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.has_begun) _longjmp(fiber.place, 1);
    fiber.has_begun = true;
    setcontext(&fiber.context);
  }

  static void enter();

  /// Threads that never wait need no change of stacks. Never returns.
  [[noreturn]] void run_threads(Fiber& fiber) {
    while (started_ < threads_) {
      const unsigned number = started_++;
      fiber.thread = descending_ ? threads_ - 1 - number : number;
      set_index(fiber.thread);
      try {
        (*thread_)();
      } catch (...) {
        failure_ = std::current_exception();
        started_ = threads_;
      }
      ended_[fiber.thread] = true;
    }
    fiber.state = State::idle;
    _longjmp(scheduler_, 1);
  }

  static void set_index(unsigned thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
  }

  std::mutex one_grid_;
  std::exception_ptr failure_;  // of a thread: the block ends with it
  const std::function<void()>* thread_ = nullptr;
  unsigned threads_ = 0, started_ = 0;
  bool descending_ = false;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<bool> ended_;
  std::vector<Slot> slots_;
  Fiber* running_ = nullptr;
  jmp_buf scheduler_;
};

Executor executor;

void Executor::enter() { executor.run_threads(*executor.running_); }

}  // namespace

void run(dim3 grid, dim3 block, const std::function<void()>& thread) { executor.run(grid, block, thread); }
void block_barrier() { executor.wait(State::at_block_barrier); }
void warp_barrier() { executor.wait(State::at_warp_barrier); }
void* lane_slot(unsigned lane) { return executor.slot(lane); }
unsigned lane() { return executor.lane(); }
bool lane_is_live(unsigned lane) { return executor.is_live(lane); }

}  // namespace cuda_emulator
