#include "ops/topk.h"

#include "engine/parallel.h"
#include "ops/cpu/largest.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const TopKFwd<T>& a) {
  if (a.k == 0) return;
  parallel_ranges(cpu, a.rows, std::max<int64_t>(1, 16384 / a.N), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      Largest<T> largest{a.values + r * a.k, a.indices + r * a.k, a.k};
      for (int64_t i = 0; i < a.N; ++i) largest.add(a.x[r * a.N + i], static_cast<int32_t>(i));
    }
  });
}

template void run(Cpu, const TopKFwd<float>&);
template void run(Cpu, const TopKFwd<double>&);

}  // namespace margay::kernels
