#include "ops/dropout.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

// A thread per Philox block: four elements.
template <class T>
__global__ void dropout(Dropout<T> a) {
  using A = acc_t<T>;
  const DropoutMask mask = DropoutMask::make(a.rng, a.stream, a.p);
  const A scale = A(1 / (1 - a.p));
  for (int64_t block = cuda::first_index(); 4 * block < a.n; block += cuda::index_step()) {
    const PhiloxBlock words = mask.words(static_cast<uint64_t>(block));
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * block + k;
      if (i < a.n) a.y[i] = T(mask.keeps(words.word[k]) ? A(a.x[i]) * scale : A(0));
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const Dropout<T>& a) {
  cuda::launch_elements(cuda, (a.n + 3) / 4, dropout<T>, a);
}

template void run(Cuda, const Dropout<float>&);
template void run(Cuda, const Dropout<double>&);
template void run(Cuda, const Dropout<bf16>&);

}  // namespace margay::kernels
