#include "engine/parallel.h"

#ifdef MARGAY_THREADS
#include <atomic>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#endif

namespace margay {
namespace {

void run_serially(int64_t pieces, PieceBody body) {
  for (int64_t piece = 0; piece < pieces; ++piece) body.call(body.body, piece);
}

#ifdef MARGAY_THREADS

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits while `state` is `value`. Short waits spin, since the next loop of a training step is rarely more than some
/// microseconds away; longer ones sleep, since the core may be wanted by others.
void wait_while(const std::atomic<int>& state, int value) {
  constexpr int kSpins = 2000;
  for (int spin = 0; spin < kSpins; ++spin) {
    if (state.load(std::memory_order_acquire) != value) return;
    relax();
  }
  state.wait(value, std::memory_order_acquire);
}

/// Threads that help the caller of run() with its pieces. The caller takes pieces too, so it never waits for a helper
/// that the machine has no core for: an order not yet taken up when the pieces are gone is taken back.
class Pool {
 public:
  ~Pool() {
    for (const auto& helper : helpers_) {
      helper->state.store(kStop, std::memory_order_release);
      helper->state.notify_one();
      helper->thread.join();
    }
  }

  void run(int threads, int64_t pieces, PieceBody body) {
    if (inside_) return run_serially(pieces, body);
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return run_serially(pieces, body);
    body_ = body;
    pieces_ = pieces;
    next_.store(0, std::memory_order_relaxed);
    const int helpers = provide_helpers(threads - 1);
    for (int i = 0; i < helpers; ++i) {
      helpers_[i]->state.store(kOrdered, std::memory_order_release);
      helpers_[i]->state.notify_one();
    }
    take_pieces();
    for (int i = 0; i < helpers; ++i) {
      std::atomic<int>& state = helpers_[i]->state;
      int ordered = kOrdered;
      if (state.compare_exchange_strong(ordered, kIdle, std::memory_order_acq_rel)) continue;
      wait_while(state, kWorking);
    }
  }

 private:
  enum State : int { kIdle, kOrdered, kWorking, kStop };

  struct alignas(64) Helper {
    std::atomic<int> state{kIdle};
    std::thread thread;
  };

  /// Starts helpers until there are `wanted`, or as many as the system grants; returns how many there are to use.
  int provide_helpers(int wanted) {
    while (static_cast<int>(helpers_.size()) < wanted) {
      auto helper = std::make_unique<Helper>();
      try {
        helper->thread = std::thread([this, &state = helper->state] { serve(state); });
      } catch (const std::system_error&) {
        return static_cast<int>(helpers_.size());
      }
      helpers_.push_back(std::move(helper));
    }
    return wanted;
  }

  void serve(std::atomic<int>& state) {
    for (;;) {
      wait_while(state, kIdle);
      int ordered = kOrdered;
      if (state.compare_exchange_strong(ordered, kWorking, std::memory_order_acq_rel)) {
        take_pieces();
        state.store(kIdle, std::memory_order_release);
        state.notify_one();
      } else if (ordered == kStop) {
        return;
      }
    }
  }

  void take_pieces() {
    inside_ = true;
    for (int64_t piece; (piece = next_.fetch_add(1, std::memory_order_relaxed)) < pieces_;)
      body_.call(body_.body, piece);
    inside_ = false;
  }

  static thread_local bool inside_;  // whether this thread is working on a piece

  std::mutex mutex_;
  std::vector<std::unique_ptr<Helper>> helpers_;
  PieceBody body_{};
  int64_t pieces_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
};

thread_local bool Pool::inside_ = false;

int default_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }
int allowed_threads(int wanted) { return std::max(1, wanted); }

#else

int default_threads() { return 1; }
int allowed_threads(int) { return 1; }

#endif

int threads_in_use = default_threads();

}  // namespace

void run_pieces([[maybe_unused]] int threads, int64_t pieces, PieceBody body) {
#ifdef MARGAY_THREADS
  static Pool pool;
  pool.run(threads, pieces, body);
#else
  run_serially(pieces, body);
#endif
}

int num_threads() { return threads_in_use; }

void set_num_threads(int threads) { threads_in_use = allowed_threads(threads); }

}  // namespace margay
