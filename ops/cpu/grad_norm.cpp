#include "ops/grad_norm.h"
#include "engine/parallel.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace margay::kernels {
namespace {

// Several sums side by side, joined in order: independent additions, and the same result on any register width.
template <class T>
double sum_of_squares(const T* x, int64_t size) {
  constexpr int64_t sums = 32;
  double sum[sums] = {};
  int64_t i = 0;
  for (; i + sums <= size; i += sums)
    for (int64_t j = 0; j < sums; ++j) sum[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (int64_t j = 0; i + j < size; ++j) sum[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  double total = 0;
  for (const double part : sum) total += part;
  return total;
}

}  // namespace

template <class T>
void run(Cpu cpu, const GlobalNorm<T>& a) {
  parallel_for(cpu, a.blocks, [&](int64_t block) {
    const NormTensor* const last =
        std::upper_bound(a.tensors, a.tensors + a.count, block,
                         [](int64_t index, const NormTensor& tensor) { return index < tensor.first_block; });
    const NormTensor& tensor = last[-1];  // the last that starts at or before this block, so it is not empty
    const int64_t begin = (block - tensor.first_block) * a.kBlock;
    a.workspace[block] =
        sum_of_squares(static_cast<const T*>(tensor.data) + begin, std::min(a.kBlock, tensor.size - begin));
  });
  double sum = 0;
  for (int64_t block = 0; block < a.blocks; ++block) sum += a.workspace[block];
  *a.norm = std::sqrt(sum);
}

template <class T>
void run(Cpu, const ClipCoefficient<T>& a) {
  const T ratio = static_cast<T>(a.max_norm) / (*a.norm + T(1e-6));
  const bool finite = std::isfinite(*a.norm) && (!a.loss || std::isfinite(*a.loss));
  *a.coefficient = !finite ? std::numeric_limits<T>::quiet_NaN() : a.max_norm == 0 || ratio > 1 ? T(1) : ratio;
}

template void run(Cpu, const GlobalNorm<float>&);
template void run(Cpu, const GlobalNorm<double>&);
template void run(Cpu, const ClipCoefficient<double>&);

}  // namespace margay::kernels
