#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "engine/error.h"

namespace margay {

/// A CUDA call that failed; `what()` names the call, the reason, the file and the line.
class CudaError : public DeviceError {
 public:
  CudaError(cudaError_t code, const std::string& message) : DeviceError(message), code_(code) {}
  cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

namespace cuda {

/// Throws for everything but success: ResourceError where memory has run out, else CudaError.
void check(cudaError_t status, const char* call, const char* file, int line);

}  // namespace cuda
}  // namespace margay

/// Every call of the CUDA runtime stands in this. Errors of kernels that ran earlier may show in any later call.
#define MARGAY_CUDA_CHECK(call) ::margay::cuda::check((call), #call, __FILE__, __LINE__)
