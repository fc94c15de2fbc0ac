#include "ops/rope.h"
#include "engine/parallel.h"

#include "ops/cpu/simd.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const Rope<T>& a) {
  using Vec = simd::Vec<T>;
  const T sign = a.back ? T(-1) : T(1);
  const int64_t rows_per_piece = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, a.H * a.dh));
  const int64_t rest = a.dh - 2 * a.pairs;
  parallel_ranges(cpu, a.B * a.L, rows_per_piece, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / a.L, t = row % a.L;
      const T *const cos = a.cos + t * a.pairs, *const sin = a.sin + t * a.pairs;
      for (int64_t h = 0; h < a.H; ++h) {
        const T* const x = a.x + b * a.x_strides.batch + h * a.x_strides.head + t * a.x_strides.row;
        T* const y = a.y + b * a.y_strides.batch + h * a.y_strides.head + t * a.y_strides.row;
        for (int64_t i = 0; i < a.pairs; i += Vec::size) {
          const int64_t n = a.pairs - i;
          const Vec c = Vec::load(cos + i, n), s = Vec::load(sin + i, n) * sign;
          const Vec low = Vec::load(x + i, n), high = Vec::load(x + a.pairs + i, n);
          (low * c - high * s).store(y + i, n);
          (high * c + low * s).store(y + a.pairs + i, n);
        }
        if (rest > 0) std::copy_n(x + 2 * a.pairs, rest, y + 2 * a.pairs);
      }
    }
  });
}

template void run(Cpu, const Rope<float>&);
template void run(Cpu, const Rope<double>&);

}  // namespace margay::kernels
