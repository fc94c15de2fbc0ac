#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "engine/host_device.h"

namespace margay {

/// Element types. bf16 is a storage type: arithmetic on it runs in f32.
enum class DType : uint8_t { f32, f64, bf16, i32, i64, boolean };

/// bfloat16: the upper half of an f32, rounded to nearest even.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  HOST_DEVICE explicit bf16(float value) {
    const auto raw = bit_cast<uint32_t>(value);
    const bool nan = (raw & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? 0x7fc0 : static_cast<uint16_t>((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
  }
  HOST_DEVICE explicit operator float() const { return bit_cast<float>(uint32_t{bits} << 16); }

 private:
  template <class To, class From>
  HOST_DEVICE static To bit_cast(From from) {
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
  }
};

/// A list of types, to fold over.
template <class... Ts>
struct Types {};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<std::remove_const_t<T>>::value;

/// Every element type, for kernels that only move data.
using AllTypes = Types<float, double, bf16, int32_t, int64_t, bool>;
using FloatTypes = Types<float, double, bf16>;

/// The type in which sums over T are accumulated.
template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<bf16> {
  using type = float;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

constexpr DType acc_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }
constexpr bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16; }
/// Bytes of one element.
size_t size_of(DType dtype);
/// "f32", "f64", "bf16", "i32", "i64" or "bool".
std::string_view name_of(DType dtype);

enum class DeviceType : uint8_t { cpu, cuda };

/// Where a tensor's memory lies.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

/// Execution context of CPU kernels.
struct Cpu {
  using dtypes = Types<float, double>;
  static constexpr DeviceType type = DeviceType::cpu;
  int threads = 1;
};

/// Execution context of CUDA kernels; `stream` is a cudaStream_t.
struct Cuda {
  using dtypes = Types<float, double, bf16>;
  static constexpr DeviceType type = DeviceType::cuda;
  void* stream = nullptr;
  int index = 0;
};

}  // namespace margay
