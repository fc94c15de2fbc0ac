#include "ops/one_hot.h"
#include "engine/parallel.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const OneHot<T>& a) {
  const int64_t rows_per_piece = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, a.classes));
  parallel_ranges(cpu, a.rows, rows_per_piece, [&](int64_t begin, int64_t end) {
    std::fill(a.y + begin * a.classes, a.y + end * a.classes, T(0));
    for (int64_t r = begin; r < end; ++r) a.y[r * a.classes + a.ids[r]] = T(1);
  });
}

template void run(Cpu, const OneHot<float>&);
template void run(Cpu, const OneHot<double>&);
template void run(Cpu, const OneHot<bf16>&);
template void run(Cpu, const OneHot<int32_t>&);
template void run(Cpu, const OneHot<int64_t>&);
template void run(Cpu, const OneHot<bool>&);

}  // namespace margay::kernels
