#include "ops/argsort.h"
#include "engine/parallel.h"

#include <array>
#include <bit>
#include <limits>
#include <utility>

namespace margay::kernels {
namespace {

// An integer that is ordered as the floats are: equal for both zeros, largest for every NaN.
template <class Key, class T>
Key ordered_key(T x) {
  if (x != x) return std::numeric_limits<Key>::max();
  if (x == 0) return 0;
  const auto bits = std::bit_cast<Key>(x);
  return bits >= 0 ? bits : static_cast<Key>(bits ^ std::numeric_limits<Key>::max());
}

// Stable, and quicker than counting for a few elements.
template <class Key>
void insertion_sort(const Key* keys, int32_t* order, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t k = i;
    for (; k > 0 && keys[order[k - 1]] > keys[i]; --k) order[k] = order[k - 1];
    order[k] = static_cast<int32_t>(i);
  }
}

// Stable counting sorts by one byte of the keys after the other, lowest first; bytes in which all keys agree are
// skipped.
template <class Key>
void radix_sort(const Key* keys, int32_t* order, int32_t* other, int64_t count) {
  constexpr int digits = sizeof(Key);
  std::array<std::array<int32_t, 256>, digits> starts{};
  // The lowest key, which is negative, has to come first: its sign bit is turned over.
  const auto digit_of = [&](int64_t i, int digit) {
    using Bits = std::make_unsigned_t<Key>;
    const Bits bits = static_cast<Bits>(keys[i]) ^ (Bits{1} << (8 * digits - 1));
    return static_cast<size_t>((bits >> (8 * digit)) & 255);
  };
  for (int64_t i = 0; i < count; ++i) {
    order[i] = static_cast<int32_t>(i);
    for (int digit = 0; digit < digits; ++digit) ++starts[static_cast<size_t>(digit)][digit_of(i, digit)];
  }
  int32_t *from = order, *to = other;
  for (int digit = 0; digit < digits; ++digit) {
    std::array<int32_t, 256>& start = starts[static_cast<size_t>(digit)];
    if (start[digit_of(0, digit)] == count) continue;
    int32_t sum = 0;
    for (int32_t& s : start) sum += std::exchange(s, sum);
    for (int64_t i = 0; i < count; ++i) to[start[digit_of(from[i], digit)]++] = from[i];
    std::swap(from, to);
  }
  if (from != order) std::copy_n(from, count, order);
}

}  // namespace

template <class T>
void run(Cpu cpu, const ArgSort<T>& a) {
  using Key = typename ArgSort<T>::Key;
  constexpr int64_t few = 48;
  const int64_t rows_per_piece = ArgSort<T>::rows_per_piece(a.N);
  parallel_for(cpu, ArgSort<T>::pieces(a.rows, a.N), [&](int64_t piece) {
    Key* const keys = a.keys + piece * a.N;
    const int64_t begin = piece * rows_per_piece, end = std::min(a.rows, begin + rows_per_piece);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < a.N; ++i) {
        const Key key = ordered_key<Key>(a.x[r * a.N + i]);
        keys[i] = a.descending ? ~key : key;
      }
      if (a.N <= few) {
        insertion_sort(keys, a.y + r * a.N, a.N);
      } else {
        radix_sort(keys, a.y + r * a.N, a.order + piece * a.N, a.N);
      }
    }
  });
}

template void run(Cpu, const ArgSort<float>&);
template void run(Cpu, const ArgSort<double>&);

}  // namespace margay::kernels
