#include "ops/dropout.h"

#include <algorithm>

#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

/// Elements that share blocks of random words: a pack of at least one Philox block.
template <class T>
constexpr int kGroup = std::max(4, cuda::kPackOf<T>);

// Elements left over make a block of random words each.
template <class T>
__global__ void dropout(cuda::Packs<kGroup<T>> packs, Dropout<T> a) {
  using A = acc_t<T>;
  const DropoutMask mask = DropoutMask::make(a.rng, a.stream, a.p);
  const A scale = A(1 / (1 - a.p));
  packs.walk([&]<int N>(int64_t i) {
    const auto x = cuda::load<N>(a.x + i);
    cuda::Pack<T, N> y;
    PhiloxBlock words;
    for (int k = 0; k < N; ++k) {
      if (k % 4 == 0) words = mask.words(static_cast<uint64_t>(i + k) / 4);
      const uint32_t word = words.word[N == 1 ? i % 4 : k % 4];
      y[k] = T(mask.keeps(word) ? A(x[k]) * scale : A(0));
    }
    cuda::store(a.y + i, y);
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const Dropout<T>& a) {
  const cuda::Packs<kGroup<T>> packs(a.n, cuda::aligned<kGroup<T>>(a.x, a.y));
  cuda::launch_packs(cuda, packs, dropout<T>, a);
}

template void run(Cuda, const Dropout<float>&);
template void run(Cuda, const Dropout<double>&);
template void run(Cuda, const Dropout<bf16>&);

}  // namespace margay::kernels
