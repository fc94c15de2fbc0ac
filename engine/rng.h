#pragma once
#include <cmath>
#include <cstdint>
#include <string_view>

#include "engine/host_device.h"

namespace margay {

/// Four random 32-bit words.
struct PhiloxBlock {
  uint32_t word[4];
};

/// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a pure function from a 64-bit
/// key and a 128-bit counter to 128 random bits, the same on every device and for any number of threads.
HOST_DEVICE inline PhiloxBlock philox(uint64_t key, uint64_t counter_high, uint64_t counter_low) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Uniform in [0, 1) with 24 random bits: every value is exact in f32.
HOST_DEVICE inline float uniform_from_bits(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

/// FNV-1a, used to give every named random stream its own counter space.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

/// A sequence of random numbers addressed by (seed, stream): element i of a stream depends on nothing else.
/// Examples use the example's index as stream, parameters the hash of their name.
class RandomStream {
 public:
  HOST_DEVICE RandomStream(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  HOST_DEVICE uint32_t bits() {
    if (used_ == 4) {
      block_ = philox(seed_, stream_, counter_++);
      used_ = 0;
    }
    return block_.word[used_++];
  }
  HOST_DEVICE uint64_t bits64() {
    const uint64_t high = bits();
    return high << 32 | bits();
  }
  /// Uniform in [0, 1), 24 bits.
  HOST_DEVICE float uniform() { return uniform_from_bits(bits()); }
  /// Uniform in [0, 1), 53 bits.
  HOST_DEVICE double uniform64() { return static_cast<double>(bits64() >> 11) * 0x1p-53; }
  /// Uniform integer in [0, n), unbiased (Lemire 2019, "Fast random integer generation in an interval"). n > 0.
  HOST_DEVICE uint32_t below(uint32_t n) {
    uint64_t product = uint64_t{bits()} * n;
    if (static_cast<uint32_t>(product) < n) {
      const uint32_t threshold = (0u - n) % n;
      while (static_cast<uint32_t>(product) < threshold) product = uint64_t{bits()} * n;
    }
    return static_cast<uint32_t>(product >> 32);
  }
  /// Standard normal (Box-Muller, in f64).
  HOST_DEVICE double normal() {
    constexpr double two_pi = 6.283185307179586476925286766559;
    const double radius = std::sqrt(-2.0 * std::log1p(-uniform64()));
    return radius * std::cos(two_pi * uniform64());
  }

 private:
  uint64_t seed_, stream_, counter_ = 0;
  PhiloxBlock block_{};
  int used_ = 4;
};

}  // namespace margay
