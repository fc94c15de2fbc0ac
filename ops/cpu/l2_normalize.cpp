#include "ops/l2_normalize.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const L2NormalizeFwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* const x = a.x + row * a.C;
      const T norm = std::sqrt(pairwise_sum<T>(0, a.C, [x](int64_t i, int64_t n) {
        const Vec v = Vec::load(x + i, n);
        return v * v;
      }));
      const T smallest = T(a.kSmallest), scale = 1 / std::max(norm, smallest);
      a.inv_norm[row] = norm < smallest ? 0 : scale;
      for (int64_t i = 0; i < a.C; i += Vec::size)
        (Vec::load(x + i, a.C - i) * scale).store(a.y + row * a.C + i, a.C - i);
    }
  });
}

template <class T>
void run(Cpu cpu, const L2NormalizeBwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *const y = a.y + row * a.C, *const dy = a.dy + row * a.C;
      T* const dx = a.dx + row * a.C;
      const T dot =
          pairwise_sum<T>(0, a.C, [=](int64_t i, int64_t n) { return Vec::load(y + i, n) * Vec::load(dy + i, n); });
      for (int64_t i = 0; i < a.C; i += Vec::size) {
        const int64_t n = a.C - i;
        Vec gradient = (Vec::load(dy + i, n) - Vec::load(y + i, n) * dot) * a.inv_norm[row];
        if (a.accumulate) gradient += Vec::load(dx + i, n);
        gradient.store(dx + i, n);
      }
    }
  });
}

template void run(Cpu, const L2NormalizeFwd<float>&);
template void run(Cpu, const L2NormalizeFwd<double>&);
template void run(Cpu, const L2NormalizeBwd<float>&);
template void run(Cpu, const L2NormalizeBwd<double>&);

}  // namespace margay::kernels
