#pragma once
#include <atomic>
#include <cstdint>

namespace margay {

class Profiler;

/// Floating-point operations of all threads, counted while a profiler lives.
class FlopCounter {
 public:
  static bool active() { return users_.load(std::memory_order_relaxed) > 0; }
  static void add(int64_t flops) {
    if (active()) count_.fetch_add(flops, std::memory_order_relaxed);
  }
  static int64_t count() { return count_.load(std::memory_order_relaxed); }

 private:
  friend class Profiler;
  static std::atomic<int> users_;
  static std::atomic<int64_t> count_;
};

}  // namespace margay
