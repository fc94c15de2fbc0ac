#pragma once
#include <cstdint>

#include "engine/scoped_value.h"

namespace margay {

/// Who multiplies matrices on a GPU: cuBLASLt, where it is found and has a kernel for the product, or always the
/// project's own kernel.
enum class GpuProducts : uint8_t { library, own };

/// Who makes the products of the ops that this thread calls, and of the gradients that it asks for. The library outside
/// every GpuProductsScope.
GpuProducts gpu_products();

/// Sets gpu_products() of this thread while it lives, to compare the two.
class GpuProductsScope {
 public:
  explicit GpuProductsScope(GpuProducts products);

 private:
  ScopedValue<GpuProducts> scope_;
};

/// How many products the library has made in this process.
int64_t library_products();
/// Counts one more.
void count_library_product();

}  // namespace margay
