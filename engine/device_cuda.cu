// The CUDA device. Nothing here runs, and no driver is loaded, before a GPU is asked for.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "engine/capture.h"
#include "engine/cuda/check.cuh"
#include "engine/cuda/elements.cuh"
#include "engine/cuda/graph.cuh"
#include "engine/device.h"
#include "engine/error.h"
#include "engine/scratch.h"

namespace margay {
namespace {

std::string name_of_device(int index) { return "cuda:" + std::to_string(index); }

__global__ void probe_kernel() {}

class GpuMemory : public SegmentSource {
 public:
  explicit GpuMemory(int index) : index_(index), name_(name_of_device(index)) {}

  void* reserve(size_t bytes) override {
    MARGAY_CUDA_CHECK(cudaSetDevice(index_));
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // answered by the allocator, and not to be reported by the next call
      return nullptr;
    }
    MARGAY_CUDA_CHECK(status);
    return memory;
  }
  // Waits for kernels that still use the segment. It fails only where an earlier call has failed already, and this one
  // may run while that error is on its way up.
  void release(void* segment, size_t) override {
    if (cudaSetDevice(index_) == cudaSuccess) static_cast<void>(cudaFree(segment));
  }
  std::string_view name() const override { return name_; }
  size_t alignment() const override { return 256; }
  size_t large_segment() const override { return size_t{64} << 20; }
  bool on_host() const override { return false; }

 private:
  int index_;
  std::string name_;
};

/// Two page-locked buffers, through which copies to and from the host go in turns: while the GPU reads or writes one,
/// the CPU fills or empties the other.
class Staging {
 public:
  static constexpr size_t kBytes = size_t{4} << 20;

  Staging() {
    for (Buffer& buffer : buffers_) {
      MARGAY_CUDA_CHECK(cudaHostAlloc(&buffer.data, kBytes, cudaHostAllocDefault));
      MARGAY_CUDA_CHECK(cudaEventCreateWithFlags(&buffer.used, cudaEventDisableTiming));
    }
  }
  ~Staging() {
    for (Buffer& buffer : buffers_) {
      if (buffer.used) static_cast<void>(cudaEventDestroy(buffer.used));
      if (buffer.data) static_cast<void>(cudaFreeHost(buffer.data));
    }
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Returns as soon as `from` has been read; the GPU may still be writing.
  void to_device(char* to, const char* from, size_t bytes, cudaStream_t stream) {
    for (size_t done = 0; done < bytes;) {
      Buffer& buffer = next();
      const size_t n = std::min(kBytes, bytes - done);
      MARGAY_CUDA_CHECK(cudaEventSynchronize(buffer.used));
      std::memcpy(buffer.data, from + done, n);
      MARGAY_CUDA_CHECK(cudaMemcpyAsync(to + done, buffer.data, n, cudaMemcpyHostToDevice, stream));
      MARGAY_CUDA_CHECK(cudaEventRecord(buffer.used, stream));
      done += n;
    }
  }

  /// Returns when all bytes have arrived.
  void to_host(char* to, const char* from, size_t bytes, cudaStream_t stream) {
    const Buffer* waiting = nullptr;  // holds the bytes before `asked`, which have not been copied out yet
    size_t asked = 0, arrived = 0;
    while (arrived < bytes) {
      const Buffer* const before = waiting;
      const size_t begin = asked;
      if (asked < bytes) {
        Buffer& buffer = next();
        const size_t n = std::min(kBytes, bytes - asked);
        MARGAY_CUDA_CHECK(cudaMemcpyAsync(buffer.data, from + asked, n, cudaMemcpyDeviceToHost, stream));
        MARGAY_CUDA_CHECK(cudaEventRecord(buffer.used, stream));
        asked += n;
        waiting = &buffer;
      }
      if (!before) continue;
      MARGAY_CUDA_CHECK(cudaEventSynchronize(before->used));
      std::memcpy(to + arrived, before->data, begin - arrived);
      arrived = begin;
    }
  }

 private:
  struct Buffer {
    void* data = nullptr;
    cudaEvent_t used = nullptr;
  };
  Buffer& next() { return buffers_[turn_ ^= 1]; }

  std::array<Buffer, 2> buffers_;
  size_t turn_ = 0;
};

/// One stream orders all work of a device: memory that is freed may be handed out at once, since whatever uses it next
/// runs later.
class CudaBackend : public DeviceBackend {
 public:
  explicit CudaBackend(int index) : index_(index), allocator_(std::make_unique<GpuMemory>(index)) {
    make_current();
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
      cudaGetLastError();
      throw DeviceError(name_of_device(index) + ": this build has no code for a GPU of its compute capability");
    }
    MARGAY_CUDA_CHECK(status);
    MARGAY_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }

  CachingAllocator& allocator() override { return allocator_; }
  void fill(const Region& to, double value) override { cuda::fill(context(), to, value); }
  void copy(const Region& to, const Region& from) override { cuda::copy(context(), to, from); }
  void accumulate(const Region& to, const Region& from) override { cuda::accumulate(context(), to, from, allocator_); }

  bool all_finite(const Region& region) override {
    refuse_in_capture("a question for values");
    const Cuda here = context();
    const Scratch flag(allocator_, sizeof(int32_t));
    MARGAY_CUDA_CHECK(cudaMemsetAsync(flag.data(), 0, sizeof(int32_t), stream_));
    cuda::find_non_finite(here, region, static_cast<int32_t*>(flag.data()));
    int32_t found = 0;
    copy_to_host(&found, flag.data(), sizeof(found));
    return found == 0;
  }

  void copy_from_host(void* to, const void* from, size_t bytes) override {
    refuse_in_capture("a copy from the host");
    make_current();
    const std::lock_guard lock(staging_mutex_);
    staging().to_device(static_cast<char*>(to), static_cast<const char*>(from), bytes, stream_);
  }
  void copy_to_host(void* to, const void* from, size_t bytes) override {
    refuse_in_capture("a copy to the host");
    make_current();
    const std::lock_guard lock(staging_mutex_);
    staging().to_host(static_cast<char*>(to), static_cast<const char*>(from), bytes, stream_);
  }
  void synchronize() override {
    refuse_in_capture("a wait for the device");
    make_current();
    MARGAY_CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  void* stream() const override {
    make_current();
    return stream_;
  }

  bool can_capture() const override { return true; }
  std::unique_ptr<DeviceGraph> capture(std::shared_ptr<MemoryPool> pool, const std::function<void()>& work) override {
    make_current();
    return cuda::capture(*this, std::move(pool), work);
  }

 private:
  /// Kernels and allocations go to the device that is current on their thread.
  void make_current() const { MARGAY_CUDA_CHECK(cudaSetDevice(index_)); }
  Cuda context() const { return Cuda{stream(), index_}; }
  // A copy would be recorded with the buffer it went through, which by the time of a replay holds something else.
  void refuse_in_capture(const char* what) const {
    if (!Capture::current()) return;
    throw CaptureError(name_of_device(index_) + ": " + what + " cannot be recorded, in " +
                       std::string(OpScope::current()));
  }
  Staging& staging() {
    if (!staging_) staging_ = std::make_unique<Staging>();
    return *staging_;
  }

  int index_;
  CachingAllocator allocator_;
  cudaStream_t stream_ = nullptr;
  std::mutex staging_mutex_;
  std::unique_ptr<Staging> staging_;
};

/// What the driver says, asked once.
struct Probe {
  int count = 0;
  std::string reason;  // why the count is 0

  Probe() {
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count > 0) return;
    count = 0;
    cudaGetLastError();
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    if (driver == 0) {
      reason = "no NVIDIA driver is installed";
    } else if (status == cudaErrorInsufficientDriver) {
      reason =
          "the NVIDIA driver is for CUDA " + version(driver) + ", this build needs CUDA " + version(CUDART_VERSION);
    } else if (status == cudaSuccess || status == cudaErrorNoDevice) {
      reason = "the NVIDIA driver finds no GPU";
    } else {
      reason = std::string("the NVIDIA driver answers: ") + cudaGetErrorString(status);
    }
  }
};

const Probe& probe() {
  static const Probe probe;
  return probe;
}

}  // namespace

int cuda_device_count() { return probe().count; }
std::string cuda_unavailable_reason() { return probe().reason; }

// Never destroyed: tensors in static objects may outlive every order of destruction.
DeviceBackend& cuda_backend(int index) {
  constexpr int most = 64;
  static std::array<std::atomic<CudaBackend*>, most> backends{};
  static std::mutex mutex;
  if (index >= 0 && index < most)
    if (CudaBackend* const ready = backends[static_cast<size_t>(index)].load(std::memory_order_acquire)) return *ready;
  const std::lock_guard lock(mutex);
  if (probe().count == 0) throw DeviceError("cuda: " + probe().reason);
  if (index < 0 || index >= std::min(probe().count, most))
    throw DeviceError(name_of_device(index) + ": the number of GPUs is " + std::to_string(probe().count));
  std::atomic<CudaBackend*>& slot = backends[static_cast<size_t>(index)];
  if (!slot.load(std::memory_order_relaxed)) slot.store(new CudaBackend(index), std::memory_order_release);
  return *slot.load(std::memory_order_relaxed);
}

std::string describe_cuda_device(int index) {
  cudaDeviceProp properties;
  MARGAY_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return name_of_device(index) + ": " + properties.name + ", " + std::to_string(properties.totalGlobalMem >> 30) +
         " GiB, compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor);
}

}  // namespace margay
