#include "ops/argmax.h"
#include "engine/parallel.h"

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

// The largest element by whole vectors, then where it stands: two quick passes instead of one with a branch an element.
template <class T>
int64_t position_of_max(const T* x, int64_t count) {
  using Vec = simd::Vec<T>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Vec largest(lowest), nans(T(0));
  for (int64_t i = 0; i < count; i += Vec::size) {
    const Vec v = Vec::load(x + i, count - i, lowest);
    nans = max(nans, select(v == v, T(0), T(1)));
    largest = select(v > largest, v, largest);
  }
  int64_t position = 0;
  if (reduce_max(nans) > 0) {
    while (x[position] == x[position]) ++position;
  } else {
    const T value = reduce_max(largest);
    while (x[position] != value) ++position;
  }
  return position;
}

}  // namespace

template <class T>
void run(Cpu cpu, const ArgMax<T>& a) {
  parallel_ranges(cpu, a.rows, std::max<int64_t>(1, 16384 / a.N), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) a.y[r] = static_cast<int32_t>(position_of_max(a.x + r * a.N, a.N));
  });
}

template void run(Cpu, const ArgMax<float>&);
template void run(Cpu, const ArgMax<double>&);

}  // namespace margay::kernels
