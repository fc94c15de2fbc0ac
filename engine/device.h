#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/allocator.h"
#include "engine/shape.h"
#include "engine/types.h"

namespace margay {

/// A strided region of device memory; strides count elements.
struct Region {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape, strides;
};

/// Work that a device has recorded, to be run as a whole as often as wanted.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  /// Hands the work to the device: it runs on what its tensors hold by then.
  virtual void replay() = 0;
};

/// What the engine needs of a device. Everything else is an op.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  virtual CachingAllocator& allocator() = 0;
  /// Sets every element to `value`, converted to the dtype.
  virtual void fill(const Region& to, double value) = 0;
  /// Copies within the device, converting the dtype; shapes must be equal.
  virtual void copy(const Region& to, const Region& from) = 0;
  /// to += from, summed over the axes along which `to` is broadcast to from's shape. Float dtypes, equal on both sides.
  virtual void accumulate(const Region& to, const Region& from) = 0;
  virtual bool all_finite(const Region& region) = 0;
  virtual void copy_from_host(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, size_t bytes) = 0;
  /// Waits until all work that was handed to the device is done.
  virtual void synchronize() = 0;
  /// The cudaStream_t on which kernels run; nullptr on the CPU.
  virtual void* stream() const { return nullptr; }

  virtual bool can_capture() const { return false; }
  /// Records what `work` hands to the device, without running it. Memory that `work` takes comes from `pool`, a pool of
  /// allocator(). The graph keeps the pool, and all tensors from before that `work` uses. Graphs that share a pool
  /// write over each other's memory: a result that is to outlast the next replay is copied to a tensor from before. No
  /// other thread may use the device meanwhile. Throws CaptureError where `work` copies to or from the host or waits
  /// for the device, or where the device records nothing; passes on what `work` throws.
  virtual std::unique_ptr<DeviceGraph> capture(std::shared_ptr<MemoryPool> pool, const std::function<void()>& work);
};

/// Throws DeviceError where the device does not exist, with the reason.
DeviceBackend& backend(Device device);
DeviceBackend& cpu_backend();

/// The CPUs that this library's kernels are compiled for: "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2), "x86-64", or "any
/// CPU" of another kind.
std::string_view cpu_kernel_level();

/// Number of usable CUDA devices; 0 without a GPU, without a driver or in a build without CUDA.
int cuda_device_count();
/// Why cuda_device_count() is 0; empty if it is not.
std::string cuda_unavailable_reason();
/// "cpu", "cuda" or "cuda:1".
std::string to_string(Device device);
/// Reads "cpu", "cuda", "cuda:N" or "auto" (the first GPU if there is one, else the CPU). Throws ConfigError for other
/// text and DeviceError for a device that is not there.
Device parse_device(std::string_view text);
/// One line a device, the CPU first: name, and what its kernels are for or the size of its memory.
std::vector<std::string> describe_devices();

}  // namespace margay
