#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>

#include "engine/cuda/check.cuh"
#include "engine/types.h"

namespace margay::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;  // of a block, where a kernel has no reason for another number

/// Starts a kernel on the context's stream, whose blocks have `shared_bytes` of dynamic shared memory. The context's
/// device must be current, as DeviceBackend::stream() makes it.
template <class... Parameters, class... Arguments>
void launch_shared(Cuda context, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
  constexpr size_t free_to_all = size_t{48} << 10;  // a kernel has to ask for more
  if (shared_bytes > free_to_all)
    MARGAY_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes)));
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  void* pointers[sizeof...(Parameters) + 1];  // an array has at least one element
  std::apply(
      [&](auto&... value) {
        size_t i = 0;
        ((pointers[i++] = &value), ...);
      },
      values);
  MARGAY_CUDA_CHECK(
      cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, static_cast<cudaStream_t>(context.stream)));
}

/// The same for a kernel without dynamic shared memory.
template <class... Parameters, class... Arguments>
void launch(Cuda context, dim3 grid, dim3 block, void (*kernel)(Parameters...), const Arguments&... arguments) {
  launch_shared(context, grid, block, 0, kernel, arguments...);
}

/// The dynamic shared memory of the block, uninitialised: see launch_shared().
template <class T>
__device__ inline T& dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return *reinterpret_cast<T*>(memory);
#else
  __shared__ T memory;
  return memory;
#endif
}

/// Starts a kernel that walks `count` elements by first_index() and index_step(); nothing for no elements.
template <class... Parameters, class... Arguments>
void launch_elements(Cuda context, int64_t count, void (*kernel)(Parameters...), const Arguments&... arguments) {
  constexpr int64_t most_blocks = int64_t{1} << 16;  // more than any GPU runs at a time: the rest is a loop
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, most_blocks);
  if (blocks > 0) launch(context, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kernel, arguments...);
}

/// The first element of this thread, and the distance to its next.
__device__ inline int64_t first_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline int64_t index_step() { return int64_t{gridDim.x} * blockDim.x; }

}  // namespace margay::cuda
