#include "engine/cuda/check.cuh"

#include <cstring>

namespace margay::cuda {

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is no longer sticky must not be reported by the next call once more
  const char* const slash = std::strrchr(file, '/');
  const std::string message = std::string(call) + " failed: " + cudaGetErrorString(status) + " (" +
                              cudaGetErrorName(status) + "), " + (slash ? slash + 1 : file) + ":" +
                              std::to_string(line);
  if (status == cudaErrorMemoryAllocation) throw ResourceError(message);
  throw CudaError(status, message);
}

}  // namespace margay::cuda
