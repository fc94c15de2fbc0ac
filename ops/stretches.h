#pragma once
#include <algorithm>
#include <cstdint>

namespace margay::kernels {

/// Sequences cut into stretches of tokens, by shape only. What a recurrence does over a stretch is known without what
/// came before it, up to a factor: where sequences and channels are too few to fill a GPU, a kernel goes through all
/// stretches at once, another one puts their ends together, and then every stretch has its start. That is twice the
/// work, so that there is one stretch where threads are enough.
struct Stretches {
  int64_t tokens, count;  ///< of all but the last; at least one, also of no tokens

  static constexpr int64_t kEnough = int64_t{1} << 15, kWanted = int64_t{1} << 16;  // threads
  static constexpr int64_t kLeast = 64, kMultiple = 32;                             // tokens
  /// `threads`: of one stretch of all sequences.
  static Stretches of(int64_t length, int64_t threads) {
    const auto quotient = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    const int64_t most = threads < 1 || threads >= kEnough ? 1 : quotient(kWanted, threads);
    const int64_t wanted = std::clamp<int64_t>(quotient(length, kLeast), 1, most);
    const int64_t tokens = std::max(kMultiple, quotient(quotient(length, wanted), kMultiple) * kMultiple);
    return {tokens, std::max<int64_t>(1, quotient(length, tokens))};
  }
};

}  // namespace margay::kernels
