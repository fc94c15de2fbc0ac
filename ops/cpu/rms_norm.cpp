#include "ops/rms_norm.h"
#include "engine/parallel.h"

#include "ops/cpu/simd.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const RmsNormFwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* x = a.x + r * a.C;
      T* y = a.y + r * a.C;
      Vec squares(T(0));
      for (int64_t c = 0; c < a.C; c += Vec::size) {
        const Vec v = Vec::load(x + c, a.C - c);
        squares += v * v;
      }
      const T inv_rms = 1 / std::sqrt(reduce_add(squares) / T(a.C) + T(a.eps));
      a.inv_rms[r] = inv_rms;
      for (int64_t c = 0; c < a.C; c += Vec::size)
        (Vec::load(x + c, a.C - c) * inv_rms * Vec::load(a.weight + c, a.C - c)).store(y + c, a.C - c);
    }
  });
}

// With s = inv_rms, xhat = s x and g = weight * dy: dx = s (g - xhat mean(g xhat)), dweight = sum over rows of dy xhat.
template <class T>
void run(Cpu cpu, const RmsNormBwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_for(cpu, RmsNormBwd<T>::pieces(a.rows), [&](int64_t piece) {
    const int64_t begin = piece * a.kRowsPerPiece, end = std::min(a.rows, begin + a.kRowsPerPiece);
    T* dweight = a.workspace + piece * a.C;
    std::fill_n(dweight, a.C, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const T *x = a.x + r * a.C, *dy = a.dy + r * a.C;
      const T s = a.inv_rms[r];
      Vec dot(T(0));
      for (int64_t c = 0; c < a.C; c += Vec::size) {
        const int64_t n = a.C - c;
        const Vec xhat = Vec::load(x + c, n) * s, g = Vec::load(dy + c, n);
        dot += g * Vec::load(a.weight + c, n) * xhat;
        (Vec::load(dweight + c, n) + g * xhat).store(dweight + c, n);
      }
      const T mean = reduce_add(dot) / T(a.C);
      for (int64_t c = 0; c < a.C; c += Vec::size) {
        const int64_t n = a.C - c;
        const Vec xhat = Vec::load(x + c, n) * s, g = Vec::load(dy + c, n) * Vec::load(a.weight + c, n);
        ((g - xhat * mean) * s).store(a.dx + r * a.C + c, n);
      }
    }
  });
  std::fill_n(a.dweight, a.C, T(0));
  for (int64_t piece = 0; piece < RmsNormBwd<T>::pieces(a.rows); ++piece)
    for (int64_t c = 0; c < a.C; ++c) a.dweight[c] += a.workspace[piece * a.C + c];
}

template void run(Cpu, const RmsNormFwd<float>&);
template void run(Cpu, const RmsNormFwd<double>&);
template void run(Cpu, const RmsNormBwd<float>&);
template void run(Cpu, const RmsNormBwd<double>&);

}  // namespace margay::kernels
