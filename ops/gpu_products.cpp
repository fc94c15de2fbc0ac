#include "ops/gpu_products.h"

#include <atomic>

namespace margay {
namespace {

thread_local GpuProducts current = GpuProducts::library;
std::atomic<int64_t> count{0};

}  // namespace

GpuProducts gpu_products() { return current; }

GpuProductsScope::GpuProductsScope(GpuProducts products) : scope_(current, products) {}

int64_t library_products() { return count.load(std::memory_order_relaxed); }
void count_library_product() { count.fetch_add(1, std::memory_order_relaxed); }

}  // namespace margay
