#include "ops/cross_entropy.h"
#include "engine/parallel.h"

#include <cmath>

#include "ops/cpu/softmax_loss.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const CrossEntropyFwd<T>& a) {
  std::fill_n(a.argmax, a.R, -1);
  std::fill_n(a.nll, a.R, T(0));
  parallel_ranges(cpu, a.n, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.V)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = a.rows[i];
      const T* const logits = a.logits + row * a.V;
      SoftmaxStats<T> stats;
      stats.add(logits, a.V, 0);
      a.row_max[i] = stats.max;
      a.inv_sum[i] = 1 / stats.sum;
      a.argmax[row] = stats.argmax;
      a.nll[row] = stats.max - logits[a.targets[row]] + std::log(stats.sum);
    }
  });
  *a.loss = mean_loss(a.nll, a.rows, a.n);
}

// dlogits = (softmax - onehot) * weight of the row.
template <class T>
void run(Cpu cpu, const CrossEntropyBwd<T>& a) {
  using Vec = simd::Vec<T>;
  LabelledRows{a.rows, a.n, a.R}.fill(cpu, 0, a.n, a.dlogits, a.V, [&](int64_t i) {
    const int64_t row = a.rows[i];
    const T *const logits = a.logits + row * a.V, weight = row_weight(a.dloss, a.dnll, a.n, row);
    T* const dlogits = a.dlogits + row * a.V;
    const Vec max(a.row_max[i]), scale(a.inv_sum[i] * weight);
    for (int64_t j = 0; j < a.V; j += Vec::size)
      (simd::exp(Vec::load(logits + j, a.V - j) - max) * scale).store(dlogits + j, a.V - j);
    dlogits[a.targets[row]] -= weight;
  });
}

template void run(Cpu, const CrossEntropyFwd<float>&);
template void run(Cpu, const CrossEntropyFwd<double>&);
template void run(Cpu, const CrossEntropyBwd<float>&);
template void run(Cpu, const CrossEntropyBwd<double>&);

}  // namespace margay::kernels
