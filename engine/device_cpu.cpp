#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "engine/device.h"
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

template <class T, class Function>
bool call_if(DType dtype, const Function& function) {
  if (dtype != dtype_of<T>) return false;
  function.template operator()<T>();
  return true;
}
template <class Function, class... Ts>
void for_dtype(DType dtype, Types<Ts...>, const Function& function) {
  if (!(... || call_if<Ts>(dtype, function))) throw std::logic_error("no kernel for " + std::string(name_of(dtype)));
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<From, bf16>)
    return convert<To>(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bool>)
    return value != From(0);
  else
    return static_cast<To>(value);
}

Cpu cpu() { return Cpu{num_threads()}; }

template <class To, class From>
void copy_elements(const Region& to, const Region& from) {
  const StridedLoop<2> loop(to.shape, {to.strides, from.strides});
  To* const y = static_cast<To*>(to.data);
  const From* const x = static_cast<const From*>(from.data);
  const int64_t sy = loop.row_stride(0), sx = loop.row_stride(1);
  loop.run(cpu(), [&](const Offsets<2>& at, int64_t n) {
    To* const row = y + at[0];
    const From* const source = x + at[1];
    if (std::is_same_v<To, From> && sy == 1 && sx == 1) {
      std::memcpy(static_cast<void*>(row), source, static_cast<size_t>(n) * sizeof(To));
    } else {
      for (int64_t i = 0; i < n; ++i) row[i * sy] = convert<To>(source[i * sx]);
    }
  });
}

template <class T>
void add_elements(const Region& to, const Region& from) {
  const StridedLoop<2> loop(to.shape, {to.strides, from.strides});
  T* const y = static_cast<T*>(to.data);
  const T* const x = static_cast<const T*>(from.data);
  const int64_t sy = loop.row_stride(0), sx = loop.row_stride(1);
  loop.run(cpu(), [&](const Offsets<2>& at, int64_t n) {
    T* const row = y + at[0];
    const T* const source = x + at[1];
    if (sy == 1 && sx == 1) {
      for (int64_t i = 0; i < n; ++i) row[i] = T(acc_t<T>(row[i]) + acc_t<T>(source[i]));
    } else {
      for (int64_t i = 0; i < n; ++i) row[i * sy] = T(acc_t<T>(row[i * sy]) + acc_t<T>(source[i * sx]));
    }
  });
}

// Sums `from` over the axes along which `to` is broadcast: for each element of `to`, over its own sub-loop.
template <class T>
void add_reduced(const Region& to, const Region& from) {
  const Shape spread = broadcast_strides(to.shape, to.strides, from.shape);
  Shape kept, kept_to, kept_from, summed, summed_from;
  for (int i = 0; i < from.shape.ndim(); ++i) {
    const bool reduced = spread[i] == 0 && from.shape[i] != 1;
    (reduced ? summed : kept).push_back(from.shape[i]);
    (reduced ? summed_from : kept_from).push_back(from.strides[i]);
    if (!reduced) kept_to.push_back(spread[i]);
  }
  const StridedLoop<2> outer(kept, {kept_to, kept_from});
  const StridedLoop<1> inner(summed, {summed_from});
  T* const y = static_cast<T*>(to.data);
  const T* const x = static_cast<const T*>(from.data);
  const int64_t sy = outer.row_stride(0), sx = outer.row_stride(1), si = inner.row_stride(0);
  constexpr int64_t width = 64;  // neighbouring results are summed side by side, so that columns are read in rows
  const auto sum_into = [&](T* out, const T* source, int64_t count) {
    acc_t<T> sums[width] = {};
    for (int64_t row = 0; row < inner.rows(); ++row) {
      const T* const start = source + inner.row_offsets(row)[0];
      for (int64_t k = 0; k < inner.row_length(); ++k)
        for (int64_t i = 0; i < count; ++i) sums[i] += acc_t<T>(start[k * si + i * sx]);
    }
    for (int64_t i = 0; i < count; ++i) out[i * sy] = T(acc_t<T>(out[i * sy]) + sums[i]);
  };
  const int64_t pieces_per_row = (outer.row_length() + width - 1) / width;
  parallel_for(cpu(), outer.rows() * pieces_per_row, [&](int64_t piece) {
    const Offsets<2> at = outer.row_offsets(piece / pieces_per_row);
    const int64_t first = piece % pieces_per_row * width;
    sum_into(y + at[0] + first * sy, x + at[1] + first * sx, std::min(width, outer.row_length() - first));
  });
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
      for_dtype(from.dtype, AllTypes{}, [&]<class From>() { copy_elements<To, From>(to, from); });
    });
  }

  void accumulate(const Region& to, const Region& from) override {
    for_dtype(to.dtype, FloatTypes{}, [&]<class T>() {
      if (to.shape == from.shape) {
        add_elements<T>(to, from);
      } else {
        add_reduced<T>(to, from);
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
        for (int64_t i = 0; i < n; ++i)
          if (!std::isfinite(static_cast<acc_t<T>>(row[i * stride]))) finite.store(false, std::memory_order_relaxed);
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

}  // namespace margay
