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

// sums[n] += sum over r < rows of dy[r] x[r - n] for N taps and one vector of channels; `history` rows lie before x.
template <int N, bool partial, class T>
void correlate_block(Sequence<const T> x, Sequence<const T> dy, int64_t history, int64_t rows, T* sums, int64_t lanes) {
  using Vec = simd::Vec<T>;
  Vec sum[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[n] = Vec::load(sums + n * kLanes<T>);
  const auto add = [&]<int... R>(int64_t row, std::integer_sequence<int, R...>, const auto& exists) {
    const Vec cotangent[] = {load<partial>(dy[row + R], lanes)...};
#pragma GCC unroll 4
    for (int r = 0; r < static_cast<int>(sizeof...(R)); ++r)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        if (exists(n)) sum[n] += cotangent[r] * load<partial>(x[row + r - n], lanes);
  };
  int64_t row = 0;
  for (; row < std::min(rows, N - 1 - history); ++row)
    add(row, std::make_integer_sequence<int, 1>(), [&](int n) { return n <= history + row; });
  const auto always = [](int) { return true; };
  for (; row + 4 <= rows; row += 4) add(row, std::make_integer_sequence<int, 4>(), always);
  for (; row < rows; ++row) add(row, std::make_integer_sequence<int, 1>(), always);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[n].store(sums + n * kLanes<T>);
}

// sums[w] += sum of dy[t] x[t - w - delay], w < width, for rows t of one vector of channels before `last` and from
// `first` or the first that meets x on. `x` begins at row x_base, `dy` at row dy_base.
template <bool partial, class T>
void correlate_rows(int64_t width, Sequence<const T> x, int64_t x_base, Sequence<const T> dy, int64_t dy_base,
                    int64_t first, int64_t last, int64_t delay, T* sums, int64_t lanes) {
  const auto block = [&]<int count>(int64_t w) {
    const int64_t t = std::max(first, delay + w), history = t - delay - w;
    if (t >= last) return;
    correlate_block<count, partial>({x[history - x_base], x.stride}, {dy[t - dy_base], dy.stride}, history, last - t,
                                    sums + w * kLanes<T>, lanes);
  };
  int64_t w = 0;
  for (; w + 8 <= width; w += 8) block.template operator()<8>(w);
  for (; w + 4 <= width; w += 4) block.template operator()<4>(w);
  for (; w < width; ++w) block.template operator()<1>(w);
}

// sums[w] += sum over t >= w of dy[t] x[t - w] for rows begin ... end - 1.
template <class T>
void correlate(const ConvShape& s, Sequence<const T> x, Sequence<const T> dy, int64_t begin, int64_t end, T* sums) {
  const int64_t rows = s.W <= kLongestDirect ? 16 : kBlock;
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = std::min(end, first + rows);
    for_channels<T>(s, [&]<bool partial>(int64_t c, int64_t lanes) {
      const Sequence<const T> own_x{x.data + c, x.stride}, own_dy{dy.data + c, dy.stride};
      T* const own_sums = sums + taps_begin<T>(s, c);
      if (s.W <= kLongestDirect) {
        correlate_rows<partial>(s.W, own_x, 0, own_dy, 0, first, last, 0, own_sums, lanes);
        return;
      }
      alignas(64) T packed_x[2 * kBlock * kLanes<T>], packed_dy[kBlock * kLanes<T>];
      pack<partial>(own_dy, first, last, lanes, packed_dy);
      for (int64_t delay = 0; delay < std::min(s.W, last); delay += kBlock) {
        const int64_t width = std::min(kBlock, s.W - delay);
        const int64_t base = std::max<int64_t>(0, std::max(first, delay) - delay - (width - 1));
        pack<partial>(own_x, base, last - delay, lanes, packed_x);
        correlate_rows<partial>(width, Sequence<const T>{packed_x, kLanes<T>}, base,
                                Sequence<const T>{packed_dy, kLanes<T>}, first, first, last, delay,
                                own_sums + delay * kLanes<T>, lanes);
      }
    });
  }
}

// out[c] += a[c] b[c] for one vector of channels.
template <bool partial, class T>
void add_product(const T* a, const T* b, T* out, int64_t lanes) {
  store<partial>(load<partial>(out, lanes) + load<partial>(a, lanes) * load<partial>(b, lanes), out, lanes);
}

// Calls body.template operator()<partial>(c, lanes, t, w, row) for every tap w of rows begin ... end - 1 that meets row
// `row` of the initial state.
template <class T, class Body>
void for_initial(const ConvShape& s, int64_t begin, int64_t end, const Body& body) {
  for_channels<T>(s, [&]<bool partial>(int64_t c, int64_t lanes) {
    for (int64_t t = begin; t < std::min(end, s.W - 1); ++t)
      for (int64_t w = t + 1; w < s.W; ++w) body.template operator()<partial>(c, lanes, t, w, s.W - 1 + t - w);
  });
}

template <class T>
void expand_taps(const ConvShape& s, const T* weight, T* taps) {
  for (int64_t c = 0; c < s.C; ++c)
    for (int64_t w = 0; w < s.W; ++w)
      taps[taps_begin<T>(s, c) + w * kLanes<T> + c % kLanes<T>] = weight[c / (s.C / s.filters) * s.W + w];
}

// Calls body(sequence, begin, end) for the stretches of time of units first ... last - 1.
template <class Body>
void for_units(const ConvShape& s, int64_t first, int64_t last, const Body& body) {
  const int64_t stretches = (s.L + s.kRowsPerUnit - 1) / s.kRowsPerUnit;
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t begin = unit % stretches * s.kRowsPerUnit;
    body(unit / stretches, begin, std::min(s.L, begin + s.kRowsPerUnit));
  }
}

// Of one stretch of time: what it adds to the sums of dweight and dbias, its part of dx, and dinitial.
template <class T>
void pull_back(const Conv1dCausalBwd<T>& a, const T* taps, T* sums, int64_t b, int64_t begin, int64_t end) {
  const ConvShape& s = a.shape;
  const Sequence<const T> x{a.x + b * a.x_batch, a.x_row}, dy{a.dy + b * a.dy_batch, a.dy_row};
  if (a.dweight) {
    correlate(s, x, dy, begin, end, sums);
    if (a.initial)
      for_initial<T>(s, begin, end, [&]<bool partial>(int64_t c, int64_t lanes, int64_t t, int64_t w, int64_t row) {
        add_product<partial>(dy[t] + c, a.initial + (b * (s.W - 1) + row) * s.C + c,
                             sums + taps_begin<T>(s, c) + w * kLanes<T>, lanes);
      });
  }
  if (a.dbias) {
    T* const sum = sums + s.taps_size();
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = 0; c < s.C; ++c) sum[c] += dy[t][c];
  }
  if (a.dx) {  // dx[t] = sum over w of taps[w] dy[t + w]: the filter itself, backwards in time
    T* const dx = a.dx + b * s.L * s.C;
    filter<T>(s, taps, nullptr, {dy[s.L - 1], -dy.stride}, {dx + (s.L - 1) * s.C, -s.C}, s.L - end, s.L - begin);
  }
  if (a.dinitial && begin == 0)
    for_initial<T>(s, 0, s.L, [&]<bool partial>(int64_t c, int64_t lanes, int64_t t, int64_t w, int64_t row) {
      add_product<partial>(taps + taps_begin<T>(s, c) + w * kLanes<T>, dy[t] + c,
                           a.dinitial + (b * (s.W - 1) + row) * s.C + c, lanes);
    });
}

// Sums over the pieces and over the channels that share a filter, in their order.
template <class T>
void combine(const Conv1dCausalBwd<T>& a, const T* sums) {
  const ConvShape& s = a.shape;
  const auto total = [&](int64_t at) {
    T sum = 0;
    for (int64_t piece = 0; piece < s.pieces(); ++piece) sum += sums[piece * s.sums_size() + at];
    return sum;
  };
  if (a.dweight) {
    std::fill_n(a.dweight, s.filters * s.W, T(0));
    for (int64_t c = 0; c < s.C; ++c)
      for (int64_t w = 0; w < s.W; ++w)
        a.dweight[c / (s.C / s.filters) * s.W + w] += total(taps_begin<T>(s, c) + w * kLanes<T> + c % kLanes<T>);
  }
  if (a.dbias)
    for (int64_t c = 0; c < s.C; ++c) a.dbias[c] = total(s.taps_size() + c);
}

}  // namespace

template <class T>
void run(Cpu cpu, const Conv1dCausalFwd<T>& a) {
  const ConvShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T* const taps = a.workspace;
  expand_taps(s, a.weight, taps);
  const int64_t units_per_piece = std::max<int64_t>(1, s.units() / ConvShape::kMostPieces);
  parallel_ranges(cpu, s.units(), units_per_piece, [&](int64_t first, int64_t last) {
    for_units(s, first, last, [&](int64_t b, int64_t begin, int64_t end) {
      const Sequence<T> y{a.y + b * s.L * s.C, s.C};
      filter<T>(s, taps, a.bias, {a.x + b * a.x_batch, a.x_row}, y, begin, end);
      if (!a.initial) return;
      for_initial<T>(s, begin, end, [&]<bool partial>(int64_t c, int64_t lanes, int64_t t, int64_t w, int64_t row) {
        add_product<partial>(taps + taps_begin<T>(s, c) + w * kLanes<T>, a.initial + (b * (s.W - 1) + row) * s.C + c,
                             y[t] + c, lanes);
      });
    });
  });
}

template <class T>
void run(Cpu cpu, const Conv1dCausalBwd<T>& a) {
  const ConvShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T *const taps = a.workspace, *const sums = taps + s.taps_size();
  expand_taps(s, a.weight, taps);
  if (a.dinitial) std::fill_n(a.dinitial, s.B * (s.W - 1) * s.C, T(0));
  const int64_t units = s.units(), pieces = s.pieces();
  parallel_for(cpu, pieces, [&](int64_t piece) {
    T* const own = sums + piece * s.sums_size();
    std::fill_n(own, s.sums_size(), T(0));
    for_units(s, piece * units / pieces, (piece + 1) * units / pieces,
              [&](int64_t b, int64_t begin, int64_t end) { pull_back(a, taps, own, b, begin, end); });
  });
  combine(a, sums);
}

template void run(Cpu, const Conv1dCausalFwd<float>&);
template void run(Cpu, const Conv1dCausalFwd<double>&);
template void run(Cpu, const Conv1dCausalBwd<float>&);
template void run(Cpu, const Conv1dCausalBwd<double>&);

}  // namespace margay::kernels
