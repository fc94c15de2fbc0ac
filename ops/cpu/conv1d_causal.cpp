#include "ops/conv1d_causal.h"

#include <utility>

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

/// Rows of one sequence in memory; the stride may be negative (time reversed).
template <class T>
struct Sequence {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
};

// Filters up to this width read x where it lies and stream through it a few rows at a time. For longer ones blocks of
// one vector of channels are packed first: rows that lie a multiple of 4 kB apart would evict each other.
constexpr int64_t kLongestDirect = 16;
constexpr int64_t kBlock = 64;  // rows, and taps, of a packed block

template <class T>
constexpr int64_t kLanes = simd::Vec<T>::size;

// Taps, and sums of their gradients, lie as [C / kLanes, W, kLanes]: those of channel c begin here.
template <class T>
int64_t taps_begin(const ConvShape& s, int64_t c) {
  return c / kLanes<T> * s.W * kLanes<T>;
}

// Calls body.template operator()<partial>(c, lanes) for every vector of channels.
template <class T, class Body>
void for_channels(const ConvShape& s, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= s.C; c += kLanes<T>) body.template operator()<false>(c, kLanes<T>);
  if (c < s.C) body.template operator()<true>(c, s.C - c);
}

template <bool partial, class T>
simd::Vec<T> load(const T* p, int64_t lanes) {
  return partial ? simd::Vec<T>::load(p, lanes) : simd::Vec<T>::load(p);
}
template <bool partial, class T>
void store(simd::Vec<T> v, T* p, int64_t lanes) {
  if constexpr (partial) {
    v.store(p, lanes);
  } else {
    v.store(p);
  }
}

// One vector of channels of rows first ... last - 1, side by side.
template <bool partial, class T>
void pack(Sequence<const T> x, int64_t first, int64_t last, int64_t lanes, T* packed) {
  for (int64_t t = first; t < last; ++t) load<partial>(x[t], lanes).store(packed + (t - first) * kLanes<T>);
}

// R rows of the result for one vector of channels, from row t on: start + sum over w < width of taps[w] x[t - w].
// x, y and start point to row t.
template <int R, bool partial, class T>
void filter_block(int64_t width, const T* taps, Sequence<const T> x, Sequence<T> y, Sequence<const T> start, int64_t t,
                  int64_t lanes) {
  using Vec = simd::Vec<T>;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) __builtin_prefetch(x[R + r]);  // streams of so few lines escape the hardware's eye
  Vec sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = start.data ? load<partial>(start[r], lanes) : Vec(T(0));
  // Taps w ... w + N - 1, neighbours of which meet the same rows of x.
  const auto add = [&]<int... N>(int64_t w, std::integer_sequence<int, N...>, const auto& exists) {
    const Vec tap[] = {Vec::load(taps + (w + N) * kLanes<T>)...};
#pragma GCC unroll 4
    for (int n = 0; n < static_cast<int>(sizeof...(N)); ++n)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        if (exists(r)) sum[r] += tap[n] * load<partial>(x[r - n - w], lanes);
  };
  const auto always = [](int) { return true; };
  const int64_t full = std::min(width, t + 1), end = std::min(width, t + R);
  int64_t w = 0;
  for (; w + 4 <= full; w += 4) add(w, std::make_integer_sequence<int, 4>(), always);
  for (; w < full; ++w) add(w, std::make_integer_sequence<int, 1>(), always);
  for (; w < end; ++w) add(w, std::make_integer_sequence<int, 1>(), [&](int r) { return r >= w - t; });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store<partial>(sum[r], y[r], lanes);
}

// Rows first ... last - 1 of one vector of channels: y[t] = start + sum over w < width of taps[w] x[t - w - delay].
// `x` begins at row `base`.
template <bool partial, class T>
void filter_rows(int64_t width, const T* taps, Sequence<const T> x, int64_t base, Sequence<T> y,
                 Sequence<const T> start, int64_t first, int64_t last, int64_t delay, int64_t lanes) {
  constexpr int R = 8;
  const auto block = [&]<int count>(int64_t t) {
    filter_block<count, partial>(width, taps, {x[t - delay - base], x.stride}, {y[t], y.stride},
                                 {start.data ? start[t] : nullptr, start.stride}, t - delay, lanes);
  };
  int64_t t = first;
  for (; t + R <= last; t += R) block.template operator()<R>(t);
  for (; t < last; ++t) block.template operator()<1>(t);
}

// y[t] = bias + sum over w <= t of taps[w] x[t - w] for rows begin ... end - 1.
template <class T>
void filter(const ConvShape& s, const T* taps, const T* bias, Sequence<const T> x, Sequence<T> y, int64_t begin,
            int64_t end) {
  const int64_t rows = s.W <= kLongestDirect ? 8 : kBlock;
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = std::min(end, first + rows);
    for_channels<T>(s, [&]<bool partial>(int64_t c, int64_t lanes) {
      const T* const own_taps = taps + taps_begin<T>(s, c);
      const Sequence<const T> own_x{x.data + c, x.stride}, offset{bias ? bias + c : nullptr, 0};
      const Sequence<T> own_y{y.data + c, y.stride};
      if (s.W <= kLongestDirect) {
        filter_rows<partial>(s.W, own_taps, own_x, 0, own_y, offset, first, last, 0, lanes);
        return;
      }
      alignas(64) T packed[2 * kBlock * kLanes<T>];
      for (int64_t delay = 0; delay < std::min(s.W, last); delay += kBlock) {
        const int64_t width = std::min(kBlock, s.W - delay), from = std::max(first, delay);
        const int64_t base = std::max<int64_t>(0, from - delay - (width - 1));
        pack<partial>(own_x, base, last - delay, lanes, packed);
        const Sequence<const T> start = delay == 0 ? offset : Sequence<const T>{own_y.data, own_y.stride};
        filter_rows<partial>(width, own_taps + delay * kLanes<T>, {packed, kLanes<T>}, base, own_y, start, from, last,
                             delay, lanes);
      }
    });
  }
}

// sums[n] += sum of dy[t] x[t - n] for N taps, one vector of channels and rows begin ... end - 1, 0 <= t - n.
template <int N, bool partial, class T>
void correlate_block(Sequence<const T> x, Sequence<const T> dy, int64_t begin, int64_t end, T* sums, int64_t lanes) {
  using Vec = simd::Vec<T>;
  Vec sum[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[n] = Vec::load(sums + n * kLanes<T>);
  const auto add = [&]<int... R>(int64_t t, std::integer_sequence<int, R...>, const auto& exists) {
    const Vec cotangent[] = {load<partial>(dy[t + R], lanes)...};
#pragma GCC unroll 4
    for (int r = 0; r < static_cast<int>(sizeof...(R)); ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        if (exists(n)) sum[n] += cotangent[r] * load<partial>(x[t + r - n], lanes);
  };
  int64_t t = std::max<int64_t>(begin, 0);
  for (; t < std::min<int64_t>(end, N - 1); ++t)
    add(t, std::make_integer_sequence<int, 1>(), [&](int n) { return n <= t; });
  const auto always = [](int) { return true; };
  for (; t + 4 <= end; t += 4) add(t, std::make_integer_sequence<int, 4>(), always);
  for (; t < end; ++t) add(t, std::make_integer_sequence<int, 1>(), always);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[n].store(sums + n * kLanes<T>);
}

}  // namespace
}  // namespace margay::kernels
