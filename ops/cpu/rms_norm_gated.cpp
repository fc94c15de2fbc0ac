#include "ops/rms_norm_gated.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"
#include "ops/unary_functors.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const RmsNormGatedFwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *const x = a.x + row * a.C, *const z = a.z + row * a.C;
      T* const y = a.y + row * a.C;
      const T squares = pairwise_sum<T>(0, a.C, [=](int64_t i, int64_t n) {
        const Vec u = Vec::load(x + i, n) * functors::Silu::value(Vec::load(z + i, n));
        u.store(y + i, n);
        return u * u;
      });
      const T inv_rms = 1 / std::sqrt(squares / T(a.C) + T(a.eps));
      a.inv_rms[row] = inv_rms;
      for (int64_t i = 0; i < a.C; i += Vec::size) {
        const int64_t n = a.C - i;
        (Vec::load(y + i, n) * inv_rms * Vec::load(a.weight + i, n)).store(y + i, n);
      }
    }
  });
}

// With s = inv_rms, uhat = s u and g = weight dy: du = s (g - uhat mean(g uhat)), dx = du silu(z), dz = du x silu'(z),
// dweight = sum over rows of dy uhat.
template <class T>
void run(Cpu cpu, const RmsNormGatedBwd<T>& a) {
  using Vec = simd::Vec<T>;
  const int64_t pieces = a.pieces(a.rows);
  parallel_for(cpu, pieces, [&](int64_t piece) {
    const int64_t begin = piece * a.kRowsPerPiece, end = std::min(a.rows, begin + a.kRowsPerPiece);
    T* const dweight = a.workspace + piece * a.C;
    std::fill_n(dweight, a.C, T(0));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * a.C;
      const T *const x = a.x + start, *const z = a.z + start, *const dy = a.dy + start;
      T *const dx = a.dx + start, *const dz = a.dz + start;
      const T s = a.inv_rms[row];
      // silu(z) and x silu'(z) wait in dx and dz for du.
      const T mean = pairwise_sum<T>(0, a.C,
                                     [&](int64_t i, int64_t n) {
                                       const Vec input = Vec::load(x + i, n), gate = Vec::load(z + i, n),
                                                 value = functors::Silu::value(gate);
                                       value.store(dx + i, n);
                                       (input * functors::Silu::derivative(gate, value)).store(dz + i, n);
                                       const Vec product = Vec::load(dy + i, n) * (input * value * s);
                                       (Vec::load(dweight + i, n) + product).store(dweight + i, n);
                                       return product * Vec::load(a.weight + i, n);
                                     }) /
                     T(a.C);
      for (int64_t i = 0; i < a.C; i += Vec::size) {
        const int64_t n = a.C - i;
        const Vec value = Vec::load(dx + i, n), g = Vec::load(dy + i, n) * Vec::load(a.weight + i, n);
        const Vec du = (g - Vec::load(x + i, n) * value * (s * mean)) * s;
        (du * value).store(dx + i, n);
        (du * Vec::load(dz + i, n)).store(dz + i, n);
      }
    }
  });
  std::fill_n(a.dweight, a.C, T(0));
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t c = 0; c < a.C; ++c) a.dweight[c] += a.workspace[piece * a.C + c];
}

template void run(Cpu, const RmsNormGatedFwd<float>&);
template void run(Cpu, const RmsNormGatedFwd<double>&);
template void run(Cpu, const RmsNormGatedBwd<float>&);
template void run(Cpu, const RmsNormGatedBwd<double>&);

}  // namespace margay::kernels
