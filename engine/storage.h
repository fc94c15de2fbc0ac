#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/capture.h"
#include "engine/device.h"

namespace margay {

/// A block of device memory, shared by all views on it.
class Storage {
 public:
  /// Throws DeviceError where there is no such device, ResourceError where its memory has run out.
  Storage(size_t bytes, Device device)
      : bytes_(bytes),
        device_(device),
        allocator_(backend(device).allocator()),
        allocation_(allocator_.allocate(bytes)) {}
  ~Storage() { allocator_.free(allocation_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return allocation_.data; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  /// Counts in-place changes, so that a saved tensor that was changed is found out.
  uint64_t version() const { return version_; }
  void bump_version() { ++version_; }
  /// The capture during which it was made; 0 for none.
  uint64_t capture() const { return capture_; }
  /// Counts the memory under another op than the one that was running when it was allocated.
  void book_under(std::string_view op) { allocator_.book(allocation_, op); }

 private:
  size_t bytes_;
  Device device_;
  CachingAllocator& allocator_;
  CachingAllocator::Allocation allocation_;
  uint64_t version_ = 0;
  uint64_t capture_ = Capture::current_number();
};

}  // namespace margay
