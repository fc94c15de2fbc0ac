#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/device.h"

namespace margay {

/// A block of device memory, shared by all views on it.
class Storage {
 public:
  Storage(size_t bytes, Device device)
      : bytes_(bytes), device_(device), data_(backend(device).allocator().allocate(bytes)) {}
  ~Storage() { backend(device_).allocator().free(data_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  /// Counts in-place changes, so that a saved tensor that was changed is found out.
  uint64_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  size_t bytes_;
  Device device_;
  void* data_;
  uint64_t version_ = 0;
};

}  // namespace margay
