#pragma once
#include <cstdint>
#include <memory>
#include <unordered_set>

namespace margay {

class Storage;

/// While it lives, its thread's work for a device is recorded (DeviceBackend::capture). Recorded work holds addresses,
/// so the memory from before, which it uses, is gathered here for the graph to keep.
class Capture {
 public:
  using Storages = std::unordered_set<std::shared_ptr<Storage>>;

  /// Throws std::logic_error while another one lives on this thread.
  Capture();
  ~Capture() { current_ = nullptr; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  /// Of this thread; null where none lives.
  static Capture* current() { return current_; }
  /// Different for every capture of the process; 0 where none lives.
  static uint64_t current_number() { return current_ ? current_->number_ : 0; }

  /// Told of all memory whose address is taken.
  void use(const std::shared_ptr<Storage>& storage);
  const Storages& from_before() const { return from_before_; }

 private:
  static inline constinit thread_local Capture* current_ = nullptr;
  uint64_t number_;
  Storages from_before_;
};

}  // namespace margay
