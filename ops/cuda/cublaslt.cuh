#pragma once
#include <cstdint>

#include "engine/types.h"

namespace margay::cuda {

/// A stack of matrices in one of the forms of a BLAS: `ld` elements lie between rows, or between columns where it is
/// `transposed`, and `stride` between matrices.
struct LibraryFactor {
  const void* data;
  bool transposed;
  int64_t ld, stride;
};

/// C[i] = A[i] B[i] + bias, added to C[i] where `add`; i < batches, A [m, k], B [k, n], C [m, n] by rows, none of them
/// empty. Sums run in f32, of f64 in f64.
struct LibraryProduct {
  LibraryFactor a, b;
  void* c;
  const void* bias;  // [n] in the dtype of C, or null
  DType factors, result;
  int64_t m, n, k, batches, ldc, c_stride;
  bool add;
};

/// Has cuBLASLt make the product, on the context's stream: with full arithmetic of f32, the same bits each time. The
/// library is opened by the first call. Returns false, with nothing done, where it is not there or has no kernel for
/// the product. A product of sizes and alignments that were seen before may be captured in a CUDA graph.
/// Throws ResourceError or DeviceError where a call of the library fails.
bool multiply_by_library(Cuda context, const LibraryProduct& product);

}  // namespace margay::cuda
