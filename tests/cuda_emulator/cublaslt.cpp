// cuBLASLt on the memory of the host. It is as strict as the documentation: sizes, leading dimensions, the alignment
// that was promised, the workspace, and that an algorithm is used for the problem it was found for.

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/types.h"
#include "tests/cuda_emulator/cublasLt.h"

using margay::bf16;

struct EmulatedHandle {};
struct EmulatedOperation {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t transposes_a = CUBLAS_OP_N, transposes_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
};
/// Element (i, j) of matrix b lies at b * stride + j * ld + i.
struct EmulatedLayout {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t ld;
  int32_t batches = 1;
  int64_t stride = 0;
};
struct EmulatedPreference {
  uint64_t workspace = 0;
  uint32_t reductions = 7;
  std::array<uint32_t, 4> alignments{256, 256, 256, 256};  // of A, B, C and D
};

namespace {

constexpr size_t kWorkspace = 4096;  // what the kernel here claims to need

/// What is kept in a cublasLtMatmulAlgo_t: a digest of the problem, and the alignments that may be relied on.
struct Algorithm {
  uint64_t problem;
  std::array<uint32_t, 4> alignments;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

struct Problem {
  EmulatedOperation operation;
  EmulatedLayout a, b, c, d;

  bool with_bias() const { return operation.epilogue == CUBLASLT_EPILOGUE_BIAS; }
  uint64_t m() const { return d.rows; }
  uint64_t n() const { return d.columns; }
  uint64_t k() const { return operation.transposes_a ? a.rows : a.columns; }

  bool is_valid() const {
    const auto fits = [&](const EmulatedLayout& layout, bool transposed, uint64_t rows, uint64_t columns) {
      return (transposed ? layout.columns : layout.rows) == rows &&
             (transposed ? layout.rows : layout.columns) == columns && layout.batches == d.batches &&
             layout.batches > 0;
    };
    // Results must not overlap.
    const bool apart = d.batches == 1 || d.stride >= d.ld * static_cast<int64_t>(d.columns);
    return fits(a, operation.transposes_a, m(), k()) && fits(b, operation.transposes_b, k(), n()) &&
           fits(c, false, m(), n()) && m() * n() * k() > 0 && apart;
  }

  /// The combinations of types that the project relies on; a bias is not added to f64.
  bool is_supported() const {
    const bool wide = d.type == CUDA_R_64F;
    if (operation.compute != (wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F)) return false;
    if (operation.scale != (wide ? CUDA_R_64F : CUDA_R_32F)) return false;
    if (a.type != b.type || c.type != d.type || (wide && with_bias())) return false;
    return a.type == d.type || (a.type == CUDA_R_16BF && d.type == CUDA_R_32F);
  }

  uint64_t digest() const {
    uint64_t hash = 14695981039346656037u;
    const auto add = [&](auto value) { hash = (hash ^ static_cast<uint64_t>(value)) * 1099511628211u; };
    for (const EmulatedLayout* layout : {&a, &b, &c, &d}) {
      add(layout->type), add(layout->rows), add(layout->columns);
      add(layout->ld), add(layout->batches), add(layout->stride);
    }
    add(operation.transposes_a), add(operation.transposes_b), add(operation.epilogue), add(operation.compute);
    return hash;
  }
};

template <class T>
T read(const void* data, int64_t i) {
  return static_cast<const T*>(data)[i];
}
double read(cudaDataType_t type, const void* data, int64_t i) {
  if (type == CUDA_R_64F) return read<double>(data, i);
  return static_cast<double>(type == CUDA_R_32F ? read<float>(data, i) : static_cast<float>(read<bf16>(data, i)));
}
void write(cudaDataType_t type, void* data, int64_t i, double value) {
  if (type == CUDA_R_64F) static_cast<double*>(data)[i] = value;
  if (type == CUDA_R_32F) static_cast<float*>(data)[i] = static_cast<float>(value);
  if (type == CUDA_R_16BF) static_cast<bf16*>(data)[i] = bf16(static_cast<float>(value));
}

/// op(A) by rows, or op(B) by columns: what is summed lies side by side.
template <class Sum>
std::vector<Sum> gather(const EmulatedLayout& layout, const void* data, int32_t batch, uint64_t lines, uint64_t length,
                        bool lines_are_columns) {
  std::vector<Sum> values(lines * length);
  for (uint64_t line = 0; line < lines; ++line) {
    for (uint64_t p = 0; p < length; ++p) {
      const auto i = static_cast<int64_t>(lines_are_columns ? p : line);
      const auto j = static_cast<int64_t>(lines_are_columns ? line : p);
      values[line * length + p] = static_cast<Sum>(read(layout.type, data, batch * layout.stride + j * layout.ld + i));
    }
  }
  return values;
}

template <class Sum>
void multiply(const Problem& problem, double alpha, const void* a, const void* b, double beta, const void* c, void* d) {
  const uint64_t m = problem.m(), n = problem.n(), k = problem.k();
  for (int32_t batch = 0; batch < problem.d.batches; ++batch) {
    const std::vector<Sum> left = gather<Sum>(problem.a, a, batch, m, k, problem.operation.transposes_a != 0);
    const std::vector<Sum> right = gather<Sum>(problem.b, b, batch, n, k, problem.operation.transposes_b == 0);
    for (uint64_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < m; ++i) {
        Sum sum = 0;
        for (uint64_t p = 0; p < k; ++p) sum += left[i * k + p] * right[j * k + p];
        const auto at = [&](const EmulatedLayout& layout) {
          return batch * layout.stride + static_cast<int64_t>(j) * layout.ld + static_cast<int64_t>(i);
        };
        double value = alpha * static_cast<double>(sum);
        if (beta != 0) value += beta * read(problem.c.type, c, at(problem.c));
        if (problem.with_bias()) value += read(problem.d.type, problem.operation.bias, static_cast<int64_t>(i));
        write(problem.d.type, d, at(problem.d), value);
      }
    }
  }
}

template <class Value>
cublasStatus_t set(Value& to, const void* value, size_t bytes) {
  if (bytes != sizeof(Value) || !value) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

bool is_aligned(const void* data, uint32_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return *handle = new EmulatedHandle, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasLtGetStatusName(cublasStatus_t) { return "CUBLAS_STATUS_EMULATED"; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *operation = new EmulatedOperation{compute, scale};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  delete operation;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(operation->transposes_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(operation->transposes_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(operation->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(operation->bias, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
  if (ld < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = new EmulatedLayout{type, rows, columns, ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  return attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? set(layout->batches, value, bytes)
                                                         : set(layout->stride, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return *preference = new EmulatedPreference, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return set(preference->workspace, value, bytes);
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return set(preference->reductions, value, bytes);
  const int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  return set(preference->alignments[static_cast<size_t>(operand)], value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
  *count = 0;
  const Problem problem{*operation, *a, *b, *c, *d};
  // Sums put together in place or in the type of the result are refused, as the project never wants them.
  const bool ordered = preference->reductions == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  if (!handle || wanted != 1 || !problem.is_valid() || !ordered) return CUBLAS_STATUS_INVALID_VALUE;
  if (!problem.is_supported() || preference->workspace < kWorkspace) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Algorithm algorithm{problem.digest(), preference->alignments};
  std::memcpy(results->algo.data, &algorithm, sizeof(algorithm));
  results->workspaceSize = kWorkspace;
  results->state = CUBLAS_STATUS_SUCCESS;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  const Problem problem{*operation, *a_layout, *b_layout, *c_layout, *d_layout};
  Algorithm found;
  std::memcpy(&found, algorithm->data, sizeof(found));
  const void* const operands[] = {a, b, c, d};
  bool aligned = true;
  for (size_t i = 0; i < 4; ++i) aligned = aligned && is_aligned(operands[i], found.alignments[i]);
  if (problem.with_bias()) aligned = aligned && operation->bias && is_aligned(operation->bias, found.alignments[3]);
  if (!handle || found.problem != problem.digest() || !aligned || workspace_bytes < kWorkspace)
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool wide = operation->scale == CUDA_R_64F;
  const auto factor = [&](const void* value) { return read(wide ? CUDA_R_64F : CUDA_R_32F, value, 0); };
  const auto work = [=, alpha = factor(alpha), beta = factor(beta)] {
    std::memset(workspace, 0xff, kWorkspace);  // nobody else's memory
    wide ? multiply<double>(problem, alpha, a, b, beta, c, d) : multiply<float>(problem, alpha, a, b, beta, c, d);
  };
  if (cuda_emulator::is_capturing(stream)) {
    const bool recorded = cuda_emulator::record(stream, work) == cudaSuccess;
    return recorded ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
  }
  work();
  return CUBLAS_STATUS_SUCCESS;
}
