#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "engine/convert.h"
#include "engine/device.h"
#include "engine/for_dtype.h"
#include "engine/parallel.h"
#include "engine/reduce_cpu.h"
#include "engine/strided.h"

namespace margay {
namespace {

// Large segments are aligned to huge pages and ask for them: first touch is twice as fast, and fewer TLB misses follow.
class SystemMemory : public SegmentSource {
 public:
  void* reserve(size_t bytes) override {
    bytes = round_up(bytes, kPage);
    void* memory = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<char*>(memory);
    const size_t lead = round_up(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    if (lead > 0) munmap(begin, lead);
    if (lead < kHugePage) munmap(begin + lead + bytes, kHugePage - lead);
    if (bytes >= kHugePage) madvise(begin + lead, bytes, MADV_HUGEPAGE);
    return begin + lead;
  }
  void release(void* segment, size_t bytes) override { munmap(segment, round_up(bytes, kPage)); }
  std::string_view name() const override { return "cpu"; }
  size_t alignment() const override { return 64; }
  size_t large_segment() const override { return size_t{64} << 20; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20, kPage = 4096;
  static size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }
};

Cpu cpu() { return Cpu{num_threads()}; }

// Rows of the usual strides get loops of their own, which the compiler turns into vector code.
template <class To, class From>
void convert_row(To* to, int64_t to_stride, const From* from, int64_t from_stride, int64_t n) {
  if (std::is_same_v<To, From> && to_stride == 1 && from_stride == 1) {
    std::memcpy(static_cast<void*>(to), from, static_cast<size_t>(n) * sizeof(To));
  } else if (to_stride == 1 && from_stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i]);
  } else if (to_stride == 1 && from_stride == 0) {
    std::fill_n(to, n, convert<To>(*from));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * to_stride] = convert<To>(from[i * from_stride]);
  }
}

template <class T>
void add_row(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n) {
  const auto sum = [](T a, T b) { return T(acc_t<T>(a) + acc_t<T>(b)); };
  if (to_stride == 1 && from_stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = sum(to[i], from[i]);
  } else if (to_stride == 1 && from_stride == 0) {
    const T value = *from;
    for (int64_t i = 0; i < n; ++i) to[i] = sum(to[i], value);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * to_stride] = sum(to[i * to_stride], from[i * from_stride]);
  }
}

template <class To, class From, class Row>
void for_rows(const Region& to, const Region& from, const Row& row) {
  const StridedLoop<2> loop(to.shape, {to.strides, from.strides});
  To* const y = static_cast<To*>(to.data);
  const From* const x = static_cast<const From*>(from.data);
  const int64_t sy = loop.row_stride(0), sx = loop.row_stride(1);
  loop.run(cpu(), [&](const Offsets<2>& at, int64_t n) { row(y + at[0], sy, x + at[1], sx, n); });
}

class CpuBackend : public DeviceBackend {
 public:
  CachingAllocator& allocator() override { return allocator_; }

  void fill(const Region& to, double value) override {
    for_dtype(to.dtype, AllTypes{}, [&]<class T>() {
      const T element = convert<T>(value);
      const StridedLoop<1> loop(to.shape, {to.strides});
      const int64_t stride = loop.row_stride(0);
      loop.run(cpu(), [&](const Offsets<1>& at, int64_t n) {
        T* const row = static_cast<T*>(to.data) + at[0];
        if (stride == 1) {
          std::fill_n(row, n, element);
        } else {
          for (int64_t i = 0; i < n; ++i) row[i * stride] = element;
        }
      });
    });
  }

  void copy(const Region& to, const Region& from) override {
    for_dtype(to.dtype, AllTypes{}, [&]<class To>() {
      for_dtype(from.dtype, AllTypes{}, [&]<class From>() { for_rows<To, From>(to, from, convert_row<To, From>); });
    });
  }

  void accumulate(const Region& to, const Region& from) override {
    for_dtype(to.dtype, FloatTypes{}, [&]<class T>() {
      if (to.shape == from.shape) {
        for_rows<T, T>(to, from, add_row<T>);
      } else {
        Reduction<T>(to, from).run(cpu(), allocator_);
      }
    });
  }

  bool all_finite(const Region& region) override {
    std::atomic<bool> finite{true};
    for_dtype(region.dtype, FloatTypes{}, [&]<class T>() {
      const StridedLoop<1> loop(region.shape, {region.strides});
      const int64_t stride = loop.row_stride(0);
      loop.run(cpu(), [&](const Offsets<1>& at, int64_t n) {
        const T* const row = static_cast<const T*>(region.data) + at[0];
        int32_t wrong = 0;  // counted, not branched on: this becomes vector code
        for (int64_t i = 0; i < n; ++i) {
          const auto value = static_cast<acc_t<T>>(row[i * stride]);
          wrong |= static_cast<int32_t>(!(value - value == 0));  // NaN for NaN and infinity
        }
        if (wrong != 0) finite.store(false, std::memory_order_relaxed);
      });
    });
    return finite;
  }

  void copy_from_host(void* to, const void* from, size_t bytes) override { copy_to_host(to, from, bytes); }
  void copy_to_host(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void synchronize() override {}

 private:
  CachingAllocator allocator_{std::make_unique<SystemMemory>()};
};

}  // namespace

// Never destroyed: tensors in static objects may outlive every order of destruction.
DeviceBackend& cpu_backend() {
  static auto* backend = new CpuBackend;
  return *backend;
}

std::string_view cpu_kernel_level() {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  return "x86-64-v4";
#elif defined(__AVX2__) && defined(__FMA__)
  return "x86-64-v3";
#elif defined(__x86_64__)
  return "x86-64";
#else
  return "any CPU";
#endif
}

}  // namespace margay
