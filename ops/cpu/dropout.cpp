#include "ops/dropout.h"
#include "engine/parallel.h"

#include <algorithm>

#include "ops/cpu/dropout_mask.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const Dropout<T>& a) {
  const DropoutMask mask = DropoutMask::make(a.rng, a.stream, a.p);
  const T scale = T(1 / (1 - a.p));
  constexpr int64_t grain = 512 * kDropoutElements;
  parallel_ranges(cpu, a.n, grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kDropoutElements];
    for (int64_t first = begin; first < end; first += kDropoutElements) {
      dropout_words(mask, static_cast<uint64_t>(first) / 4, words);
      const T* const x = a.x + first;
      T* const y = a.y + first;
      const int64_t count = std::min(kDropoutElements, end - first);
      for (int64_t i = 0; i < count; ++i) {
        const T scaled = x[i] * scale;
        y[i] = mask.keeps(words[i]) ? scaled : T(0);
      }
    }
  });
}

template void run(Cpu, const Dropout<float>&);
template void run(Cpu, const Dropout<double>&);

}  // namespace margay::kernels
