#pragma once
#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/tensor.h"

namespace margay {

/// What a scope stands for: a part of a program that has many ops, or one op.
enum class ScopeKind : uint8_t { phase, op };

/// One scope from its beginning to its end.
struct ProfileEvent {
  std::string_view name;
  ScopeKind kind = ScopeKind::op;
  int parent = -1;                   ///< index of the scope around it
  bool backward = false;             ///< whether it is inside a backward pass
  int64_t begin_ns = 0, end_ns = 0;  ///< since the profiler was made
  int64_t flops = 0;                 ///< of matrix products; on a GPU, those of BLAS products and of causal_attention
  int64_t bytes = 0;       ///< of an op's tensors: inputs and results, or in a backward pass cotangents and gradients
  int64_t live_bytes = 0;  ///< of all tensors of the device, at the end

  int64_t duration_ns() const { return end_ns - begin_ns; }
};

/// Records the scopes of the thread that made it, while it lives: every op, forward and backward, and the phases that a
/// program names. It waits for the device at the end of each scope, so that a scope's time is that of its work.
class Profiler {
 public:
  /// Throws std::logic_error while another one lives on this thread.
  explicit Profiler(Device device);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  /// Scopes in the order in which they began. One that has not ended yet ends at 0.
  const std::vector<ProfileEvent>& events() const { return events_; }

  /// Of this thread; null where none lives.
  static Profiler* current() { return current_; }
  void begin(std::string_view name, ScopeKind kind);
  void end();
  /// Adds the bytes of tensors to the op whose outermost scope is open, or ended last; to none if that has another
  /// name.
  void add_bytes(std::string_view op, std::span<const Tensor> tensors);

 private:
  int64_t now() const;

  static thread_local Profiler* current_;
  Device device_;
  std::chrono::steady_clock::time_point start_;
  std::vector<ProfileEvent> events_;
  int open_ = -1;     // the innermost scope
  int last_op_ = -1;  // the outermost scope of the op that began last
};

/// A part of a program, as it appears in a profile. `name` must outlive the profiler.
class ProfileScope {
 public:
  explicit ProfileScope(std::string_view name, ScopeKind kind = ScopeKind::phase) : profiler_(Profiler::current()) {
    if (profiler_) profiler_->begin(name, kind);
  }
  ~ProfileScope() {
    if (profiler_ && profiler_ == Profiler::current()) profiler_->end();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profiler* profiler_;
};

}  // namespace margay
