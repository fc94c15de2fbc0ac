#pragma once
#include <cmath>

#include "engine/op.h"
#include "engine/rng.h"

namespace margay {

/// y = x / (1 - p) where an element is kept, 0 where it is dropped, each with probability p. The mask is a function of
/// `rng`, `stream` and the element's row-major index alone (DropoutMask says how); it is made again for the gradient
/// and never stored. x [..] of a float dtype -> y of the same shape, contiguous; x itself if p = 0. rng: i64 [2] =
/// {seed, step} on the device of x, read when the kernel runs. `stream` tells call sites apart. Throws OpError unless 0
/// <= p < 1. Srivastava et al. 2014.
Tensor dropout(const Tensor& x, double p, const Tensor& rng, uint64_t stream);

/// Which elements dropout keeps, on every device: element i is kept if uniform_from_bits(w) >= p, where w is word i % 4
/// of philox(seed, h, i / 4) and h mixes stream and step.
struct DropoutMask {
  uint64_t seed, counter_high;
  uint32_t threshold;  // of the upper 24 bits of a word

  HOST_DEVICE static DropoutMask make(const int64_t* rng, uint64_t stream, double p) {
    return {static_cast<uint64_t>(rng[0]), mix(stream + mix(static_cast<uint64_t>(rng[1]))),
            static_cast<uint32_t>(std::ceil(p * 0x1p24))};
  }
  /// The words of elements 4 * block ... 4 * block + 3.
  HOST_DEVICE PhiloxBlock words(uint64_t block) const { return philox(seed, counter_high, block); }
  HOST_DEVICE bool keeps(uint32_t word) const { return word >> 8 >= threshold; }
  HOST_DEVICE bool keeps_element(uint64_t i) const { return keeps(words(i / 4).word[i % 4]); }

 private:
  // The output function of SplitMix64 (Steele et al. 2014): a bijection that spreads every bit.
  HOST_DEVICE static uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
};

namespace kernels {

/// Serves the gradient too: dx is dy under the same mask.
template <class T>
struct Dropout {
  const T* x;
  T* y;
  const int64_t* rng;
  uint64_t stream;
  int64_t n;
  double p;
};
template <class T>
void run(Cpu, const Dropout<T>&);
template <class T>
void run(Cuda, const Dropout<T>&);

}  // namespace kernels
}  // namespace margay
