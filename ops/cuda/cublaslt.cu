#include "ops/cuda/cublaslt.cuh"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "engine/cuda/check.cuh"
#include "engine/device.h"
#include "engine/error.h"
#include "ops/gpu_products.h"

namespace margay::cuda {
namespace {

/// What is called of the library. It is opened, and not linked: loading it takes longer than many a program runs, and
/// a program must start where it is not installed.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetStatusName) status_name = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_operation = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_operation = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithms = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;

  /// Whether the file is there and has every function. It stays open to the end of the process.
  bool open(const std::string& name) {
    void* const file = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto find = [file]<class Function>(const char* symbol, Function& function) {
      function = reinterpret_cast<Function>(dlsym(file, symbol));
      return function != nullptr;
    };
    return file && find("cublasLtCreate", create) && find("cublasLtDestroy", destroy) &&
           find("cublasLtGetStatusName", status_name) && find("cublasLtMatmulDescCreate", create_operation) &&
           find("cublasLtMatmulDescDestroy", destroy_operation) &&
           find("cublasLtMatmulDescSetAttribute", set_operation) && find("cublasLtMatrixLayoutCreate", create_layout) &&
           find("cublasLtMatrixLayoutDestroy", destroy_layout) &&
           find("cublasLtMatrixLayoutSetAttribute", set_layout) &&
           find("cublasLtMatmulPreferenceCreate", create_preference) &&
           find("cublasLtMatmulPreferenceDestroy", destroy_preference) &&
           find("cublasLtMatmulPreferenceSetAttribute", set_preference) &&
           find("cublasLtMatmulAlgoGetHeuristic", find_algorithms) && find("cublasLtMatmul", multiply);
  }

  void check(cublasStatus_t status, const char* call) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    const std::string message = std::string(call) + " failed: " + status_name(status);
    if (status == CUBLAS_STATUS_ALLOC_FAILED) throw ResourceError(message);
    throw DeviceError(message);
  }
};

/// Null where there is none: neither that of the toolkit this was built with nor its neighbour, as far as the driver
/// is new enough.
const Library* library() {
  static const std::optional<Library> found = []() -> std::optional<Library> {
    int driver = 0;
    MARGAY_CUDA_CHECK(cudaDriverGetVersion(&driver));
    Library library;
    for (const int version : {CUDART_VERSION / 1000, 13, 12}) {
      const std::string name = "libcublasLt.so." + std::to_string(version);
      if (version > driver / 1000) continue;
      if (library.open(name) || library.open("/usr/local/cuda/lib64/" + name)) return library;
    }
    return std::nullopt;
  }();
  return found ? &*found : nullptr;
}

template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, cublasStatus_t (*)(Handle)>;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f64 ? CUDA_R_64F : dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// The bytes that an address is a multiple of, as far as kernels care.
uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<uint32_t>(std::min<uintptr_t>(16, address ? address & -address : 16));
}

/// How the library is asked for one shape of products. It stores matrices by columns, so what it makes is C^T = B^T
/// A^T, and our rows are its columns.
class Plan {
 public:
  /// All that a plan depends on.
  using Key = std::array<int64_t, 20>;
  static Key key_of(const LibraryProduct& p) {
    return {static_cast<int64_t>(p.factors),
            static_cast<int64_t>(p.result),
            p.m,
            p.n,
            p.k,
            p.batches,
            p.a.transposed,
            p.a.ld,
            p.a.stride,
            alignment_of(p.a.data),
            p.b.transposed,
            p.b.ld,
            p.b.stride,
            alignment_of(p.b.data),
            p.ldc,
            p.c_stride,
            alignment_of(p.c),
            p.add,
            p.bias != nullptr,
            alignment_of(p.bias)};
  }

  Plan(const Library& library, cublasLtHandle_t handle, const LibraryProduct& p, size_t workspace_bytes)
      : library_(library),
        operation_(make_operation(p)),
        a_(make_layout(p.factors, p.a.transposed ? p.m : p.k, p.a.transposed ? p.k : p.m, p.a.ld, p.batches,
                       p.a.stride)),
        b_(make_layout(p.factors, p.b.transposed ? p.k : p.n, p.b.transposed ? p.n : p.k, p.b.ld, p.batches,
                       p.b.stride)),
        c_(make_layout(p.result, p.n, p.m, p.ldc, p.batches, p.c_stride)) {
    set_bias(p);
    find_algorithm(handle, p, workspace_bytes);
  }

  /// Whether the library has a kernel.
  bool exists() const { return exists_; }

  void multiply(Cuda context, cublasLtHandle_t handle, const LibraryProduct& p, void* workspace,
                size_t workspace_bytes) {
    set_bias(p);
    const double one = 1, beta = p.add ? 1 : 0;
    const float one_f32 = 1, beta_f32 = p.add ? 1 : 0;
    const bool wide = p.result == DType::f64;
    library_.check(library_.multiply(
                       handle, operation_.get(), wide ? static_cast<const void*>(&one) : &one_f32, p.b.data, b_.get(),
                       p.a.data, a_.get(), wide ? static_cast<const void*>(&beta) : &beta_f32, p.c, c_.get(), p.c,
                       c_.get(), &algorithm_, workspace, workspace_bytes, static_cast<cudaStream_t>(context.stream)),
                   "cublasLtMatmul");
  }

 private:
  template <class Value>
  void set_operation(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, Value value) {
    library_.check(library_.set_operation(operation, attribute, &value, sizeof(value)),
                   "cublasLtMatmulDescSetAttribute");
  }

  Owned<cublasLtMatmulDesc_t> make_operation(const LibraryProduct& p) {
    cublasLtMatmulDesc_t made = nullptr;
    const bool wide = p.result == DType::f64;
    library_.check(library_.create_operation(&made, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                             wide ? CUDA_R_64F : CUDA_R_32F),
                   "cublasLtMatmulDescCreate");
    Owned<cublasLtMatmulDesc_t> operation(made, library_.destroy_operation);
    set_operation(made, CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set_operation(made, CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) set_operation(made, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    return operation;
  }

  Owned<cublasLtMatrixLayout_t> make_layout(DType dtype, int64_t rows, int64_t columns, int64_t ld, int64_t batches,
                                            int64_t stride) {
    cublasLtMatrixLayout_t made = nullptr;
    library_.check(
        library_.create_layout(&made, type_of(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), ld),
        "cublasLtMatrixLayoutCreate");
    Owned<cublasLtMatrixLayout_t> layout(made, library_.destroy_layout);
    const auto count = static_cast<int32_t>(batches);
    library_.check(library_.set_layout(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
                   "cublasLtMatrixLayoutSetAttribute");
    library_.check(library_.set_layout(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)),
                   "cublasLtMatrixLayoutSetAttribute");
    return layout;
  }

  void set_bias(const LibraryProduct& p) {
    if (p.bias) set_operation(operation_.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }

  void find_algorithm(cublasLtHandle_t handle, const LibraryProduct& p, size_t workspace_bytes) {
    cublasLtMatmulPreference_t made = nullptr;
    library_.check(library_.create_preference(&made), "cublasLtMatmulPreferenceCreate");
    const Owned<cublasLtMatmulPreference_t> preference(made, library_.destroy_preference);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      library_.check(library_.set_preference(made, attribute, &value, sizeof(value)),
                     "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
    // A sum that is cut is put together in f32 and in order, in a step of its own.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c));
    // The bias is read as the result is written.
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::min(alignment_of(p.c), alignment_of(p.bias)));
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status = library_.find_algorithms(handle, operation_.get(), b_.get(), a_.get(), c_.get(),
                                                           c_.get(), made, 1, &result, &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return;
    library_.check(status, "cublasLtMatmulAlgoGetHeuristic");
    exists_ = count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    algorithm_ = result.algo;
  }

  const Library& library_;
  Owned<cublasLtMatmulDesc_t> operation_;
  Owned<cublasLtMatrixLayout_t> a_, b_, c_;
  cublasLtMatmulAlgo_t algorithm_{};
  bool exists_ = false;
};

/// The library on one device: its handle, its workspace and the plans of the products that were seen.
class Multiplier {
 public:
  Multiplier(const Library& library, int device) : library_(library), handle_(make_handle(library)) {
    const OpScope scope("cublaslt");
    workspace_ = backend(Device{DeviceType::cuda, device}).allocator().allocate(kWorkspace).data;
  }

  bool multiply(Cuda context, const LibraryProduct& product) {
    const Plan::Key key = Plan::key_of(product);
    auto plan = plans_.find(key);
    if (plan == plans_.end()) {
      plan = plans_
                 .emplace(std::piecewise_construct, std::forward_as_tuple(key),
                          std::forward_as_tuple(library_, handle_.get(), product, kWorkspace))
                 .first;
    }
    if (!plan->second.exists()) return false;
    plan->second.multiply(context, handle_.get(), product, workspace_, kWorkspace);
    return true;
  }

 private:
  static constexpr size_t kWorkspace = size_t{32} << 20;  // bytes, as the makers of the library advise for large GPUs

  static Owned<cublasLtHandle_t> make_handle(const Library& library) {
    cublasLtHandle_t handle = nullptr;
    library.check(library.create(&handle), "cublasLtCreate");
    return {handle, library.destroy};
  }

  const Library& library_;
  Owned<cublasLtHandle_t> handle_;
  void* workspace_ = nullptr;
  std::map<Plan::Key, Plan> plans_;
};

}  // namespace

// Devices are never forgotten, as their memory is not. The lock also keeps the kernels of one product, which share the
// workspace, together on the stream.
bool multiply_by_library(Cuda context, const LibraryProduct& product) {
  const Library* const found = library();
  if (!found) return false;
  static std::mutex mutex;
  static auto& devices = *new std::map<int, Multiplier>;
  const std::lock_guard lock(mutex);
  Multiplier& multiplier = devices.try_emplace(context.index, *found, context.index).first->second;
  if (!multiplier.multiply(context, product)) return false;
  count_library_product();
  return true;
}

}  // namespace margay::cuda
