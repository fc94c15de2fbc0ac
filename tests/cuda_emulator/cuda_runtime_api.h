#pragma once
// The part of the CUDA runtime that Margay calls, on the memory of the host. All work is done when a call returns, but
// for that of a stream which records it.

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "tests/cuda_emulator/executor.h"
#include "tests/cuda_emulator/stream.h"
#include "tests/cuda_emulator/tensor_cores.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

inline constexpr int CUDART_VERSION = 12000;

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline constexpr unsigned cudaHostAllocDefault = 0, cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1;

struct cudaFuncAttributes {};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaDeviceProp {
  char name[256] = "emulated GPU";
  size_t totalGlobalMem = size_t{8} << 30;
  int major = 9, minor = 0;
};

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) { return *properties = {}, cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  constexpr int most_of_a_block = 227 << 10;
  return bytes <= most_of_a_block ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidValue; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

// Memory stands behind its size, so that what is read after its end can show as NaN.
inline constexpr size_t kEmulatedAlignment = 256;
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const cudaError_t status = cuda_emulator::check_unsafe_call(); status != cudaSuccess) return status;
  if (bytes > cudaDeviceProp{}.totalGlobalMem) return cudaErrorMemoryAllocation;
  const size_t rounded = (bytes + kEmulatedAlignment - 1) / kEmulatedAlignment * kEmulatedAlignment;
  void* const begin = std::aligned_alloc(kEmulatedAlignment, kEmulatedAlignment + rounded);
  if (!begin) return cudaErrorMemoryAllocation;
  *static_cast<size_t*>(begin) = rounded;
  *memory = static_cast<char*>(begin) + kEmulatedAlignment;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  if (const cudaError_t status = cuda_emulator::check_unsafe_call(); status != cudaSuccess) return status;
  if (!memory) return cudaSuccess;
  void* const begin = static_cast<char*>(memory) - kEmulatedAlignment;
  std::memset(memory, 0xff, *static_cast<size_t*>(begin));
  std::free(begin);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (cuda_emulator::is_capturing(stream)) return cuda_emulator::record(stream, [=] { std::memmove(to, from, bytes); });
  return std::memmove(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (cuda_emulator::is_capturing(stream)) return cuda_emulator::record(stream, [=] { std::memset(to, value, bytes); });
  return std::memset(to, value, bytes), cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t stream) {
  if (block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidValue;
  return [&]<size_t... i>(std::index_sequence<i...>) {
    if (cuda_emulator::is_capturing(stream)) {  // arguments are copied now
      return cuda_emulator::record(stream, [=, values = std::tuple(*static_cast<Parameters*>(arguments[i])...)] {
        cuda_emulator::run(grid, block, [&] { std::apply(kernel, values); });
      });
    }
    cuda_emulator::run(grid, block, [&] { kernel(*static_cast<Parameters*>(arguments[i])...); });
    return cudaSuccess;
  }
  (std::index_sequence_for<Parameters...>());
}

// ---- What kernels call ---------------------------------------------------------------------------------------------

inline void __syncthreads() { cuda_emulator::block_barrier(); }
inline int __syncthreads_or(int predicate) {
  static int any = 0;
  if (predicate) any = 1;
  cuda_emulator::block_barrier();
  const int result = any;
  cuda_emulator::block_barrier();  // all have read it
  any = 0;
  cuda_emulator::block_barrier();  // nobody sets it before it is 0
  return result;
}
inline void __syncwarp(unsigned = 0xffffffffu) { cuda_emulator::warp_barrier(); }

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return cuda_emulator::from_lane(value, static_cast<unsigned>(source));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  return cuda_emulator::from_lane(value, cuda_emulator::lane() + distance);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_emulator::from_lane(value, cuda_emulator::lane() ^ static_cast<unsigned>(mask));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned bits = unsigned{predicate != 0} << cuda_emulator::lane();
  for (int distance = 16; distance > 0; distance /= 2) bits |= __shfl_xor_sync(mask, bits, distance);
  return bits;
}
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }

template <class A, class B>
constexpr auto min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
constexpr auto max(A a, B b) {
  return a > b ? a : b;
}
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
