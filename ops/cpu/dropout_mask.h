#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "ops/dropout.h"

namespace margay::kernels {

/// Elements whose masks are made together: 16 Philox blocks of 4.
inline constexpr int64_t kDropoutElements = 64;
static_assert(std::endian::native == std::endian::little, "two words are stored as one 64-bit lane");

// Eight Philox counters side by side, one in the lower half of each 64-bit lane; the upper halves hold anything.
typedef uint64_t PhiloxLanes __attribute__((vector_size(64)));

inline PhiloxLanes multiply_lower_halves(PhiloxLanes a, uint32_t b) {
#ifdef __AVX512F__
  const auto factor = reinterpret_cast<__m512i>(PhiloxLanes{} + b);
  return reinterpret_cast<PhiloxLanes>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), factor));
#else
  return (a & 0xffffffffu) * b;
#endif
}

/// The words of kDropoutElements elements, starting at element 4 * first_block.
inline void dropout_words(const DropoutMask& mask, uint64_t first_block, uint32_t* words) {
  constexpr PhiloxLanes iota{0, 1, 2, 3, 4, 5, 6, 7};
  for (int half = 0; half < 2; ++half) {
    PhiloxLanes c0 = iota + (first_block + static_cast<uint64_t>(8 * half)), c1 = c0 >> 32;
    PhiloxLanes c2 = PhiloxLanes{} + mask.counter_high, c3 = c2 >> 32;
    uint32_t k0 = static_cast<uint32_t>(mask.seed), k1 = static_cast<uint32_t>(mask.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const PhiloxLanes p0 = multiply_lower_halves(c0, 0xD2511F53u), p1 = multiply_lower_halves(c2, 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const PhiloxLanes first = (c0 & 0xffffffffu) | (c1 << 32), second = (c2 & 0xffffffffu) | (c3 << 32);
    const std::array<PhiloxLanes, 2> ordered{__builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11),
                                             __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15)};
    std::memcpy(words + 32 * half, ordered.data(), sizeof(ordered));
  }
}

/// factors[i] = scale if element first + i is kept, else 0.
template <class T>
void dropout_factors(const DropoutMask& mask, T scale, int64_t first, int64_t count, T* factors) {
  alignas(64) uint32_t words[2 * kDropoutElements];
  const int64_t skip = first % 4;
  for (int64_t done = 0; done < count; done += kDropoutElements) {
    const int64_t some = std::min(kDropoutElements, count - done);
    const auto block = static_cast<uint64_t>((first + done) / 4);
    dropout_words(mask, block, words);
    if (skip + some > kDropoutElements) dropout_words(mask, block + kDropoutElements / 4, words + kDropoutElements);
    for (int64_t i = 0; i < some; ++i) factors[done + i] = mask.keeps(words[skip + i]) ? scale : T(0);
  }
}

}  // namespace margay::kernels
