#pragma once
// The part of the CUDA runtime that Margay calls, on the memory of the host. All work is done when a call returns.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "tests/cuda_emulator/executor.h"
#include "tests/cuda_emulator/tensor_cores.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

inline constexpr int CUDART_VERSION = 12000;

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidValue,
  cudaErrorNoDevice,
  cudaErrorInsufficientDriver,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline constexpr unsigned cudaHostAllocDefault = 0, cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1;

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
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

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = bytes <= cudaDeviceProp{}.totalGlobalMem ? std::aligned_alloc(256, (bytes + 255) / 256 * 256) : nullptr;
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memmove(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
  if (block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidValue;
  [&]<size_t... i>(std::index_sequence<i...>) {
    cuda_emulator::run(grid, block, [&] { kernel(*static_cast<Parameters*>(arguments[i])...); });
  }
  (std::index_sequence_for<Parameters...>());
  return cudaSuccess;
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
