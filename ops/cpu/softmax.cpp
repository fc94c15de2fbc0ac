#include "ops/softmax.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"
#include "ops/cpu/simd_math.h"

namespace margay::kernels {
namespace {

template <class T>
void softmax_row(const T* x, T* y, int64_t C) {
  using Vec = simd::Vec<T>;
  const T largest = row_max(x, C);
  const T total = pairwise_sum<T>(0, C, [=](int64_t i, int64_t n) {
    const Vec e = exp(Vec::load(x + i, n, -std::numeric_limits<T>::infinity()) - largest);
    e.store(y + i, n);
    return e;
  });
  const T scale = 1 / total;
  for (int64_t i = 0; i < C; i += Vec::size) (Vec::load(y + i, C - i) * scale).store(y + i, C - i);
}

template <class T>
void log_softmax_row(const T* x, T* y, int64_t C) {
  using Vec = simd::Vec<T>;
  const T largest = row_max(x, C);
  const T log_total = std::log(pairwise_sum<T>(0, C, [=](int64_t i, int64_t n) {
    return exp(Vec::load(x + i, n, -std::numeric_limits<T>::infinity()) - largest);
  }));
  for (int64_t i = 0; i < C; i += Vec::size) ((Vec::load(x + i, C - i) - largest) - log_total).store(y + i, C - i);
}

template <class T>
void masked_softmax_row(const T* x, const bool* mask, T* y, int64_t C) {
  bool all_masked = true;
  for (int64_t i = 0; i < C; ++i) {
    y[i] = mask[i] ? -std::numeric_limits<T>::infinity() : x[i];
    all_masked &= mask[i];
  }
  if (all_masked) {
    std::fill_n(y, C, T(0));
  } else {
    softmax_row(y, y, C);
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const SoftmaxFwd<T>& a) {
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* const x = a.x + row * a.C;
      T* const y = a.y + row * a.C;
      if (a.mask) {
        masked_softmax_row(x, a.mask + row % a.mask_rows * a.C, y, a.C);
      } else if (a.log) {
        log_softmax_row(x, y, a.C);
      } else {
        softmax_row(x, y, a.C);
      }
    }
  });
}

template <class T>
void run(Cpu cpu, const SoftmaxBwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, rows_per_piece(a.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *const y = a.y + row * a.C, *const dy = a.dy + row * a.C;
      T* const dx = a.dx + row * a.C;
      const T total = pairwise_sum<T>(0, a.C, [&](int64_t i, int64_t n) {
        const Vec g = Vec::load(dy + i, n);
        return a.log ? g : g * Vec::load(y + i, n);
      });
      for (int64_t i = 0; i < a.C; i += Vec::size) {
        const int64_t n = a.C - i;
        const Vec g = Vec::load(dy + i, n), weight = Vec::load(y + i, n);
        Vec gradient = a.log ? g - exp(weight) * total : weight * (g - total);
        if (a.accumulate) gradient += Vec::load(dx + i, n);
        gradient.store(dx + i, n);
      }
    }
  });
}

template void run(Cpu, const SoftmaxFwd<float>&);
template void run(Cpu, const SoftmaxFwd<double>&);
template void run(Cpu, const SoftmaxBwd<float>&);
template void run(Cpu, const SoftmaxBwd<double>&);

}  // namespace margay::kernels
