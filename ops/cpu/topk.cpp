#include "ops/topk.h"
#include "engine/parallel.h"

#include "ops/cpu/order.h"

namespace margay::kernels {
namespace {

// Keeps the k largest so far in order; an element that does not beat the last of them costs one comparison.
template <class T>
void select_largest(const T* x, int64_t count, int64_t k, T* values, int32_t* indices) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kept == k && (x[i] <= values[k - 1] || !greater(x[i], values[k - 1]))) continue;
    int64_t place = kept < k ? kept++ : k - 1;
    for (; place > 0 && greater(x[i], values[place - 1]); --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = x[i];
    indices[place] = static_cast<int32_t>(i);
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const TopKFwd<T>& a) {
  if (a.k == 0) return;
  parallel_ranges(cpu, a.rows, std::max<int64_t>(1, 16384 / a.N), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      select_largest(a.x + r * a.N, a.N, a.k, a.values + r * a.k, a.indices + r * a.k);
  });
}

template void run(Cpu, const TopKFwd<float>&);
template void run(Cpu, const TopKFwd<double>&);

}  // namespace margay::kernels
