#include "ops/conv1d_causal.h"
#include "engine/parallel.h"

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

// R rows of the result for one vector of channels, from row t on, to which x and y point.
template <int R, bool partial, class T>
void filter_block(int64_t width, const T* taps, const T* bias, Sequence<const T> x, Sequence<T> y, int64_t t,
                  int64_t lanes) {
  using Vec = simd::Vec<T>;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) __builtin_prefetch(x[R + r]);  // streams of so few lines escape the hardware's eye
  Vec sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = bias ? load<partial>(bias, lanes) : Vec(T(0));
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

// y[t] = bias + sum over w <= t of taps[w] x[t - w] for rows begin ... end - 1. A few rows of all channels at a time:
// so x and y are walked through in the order of memory, and the rows before stay in the second-level cache.
template <class T>
void filter(const ConvShape& s, const T* taps, const T* bias, Sequence<const T> x, Sequence<T> y, int64_t begin,
            int64_t end) {
  constexpr int R = 8;
  const auto rows = [&]<int count>(int64_t t) {
    for_channels<T>(s, [&]<bool partial>(int64_t c, int64_t lanes) {
      filter_block<count, partial>(s.W, taps + taps_begin<T>(s, c), bias ? bias + c : nullptr, {x[t] + c, x.stride},
                                   {y[t] + c, y.stride}, t, lanes);
    });
  };
  int64_t t = begin;
  for (; t + R <= end; t += R) rows.template operator()<R>(t);
  for (; t < end; ++t) rows.template operator()<1>(t);
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

// sums[w] += sum over t >= w of dy[t] x[t - w] for rows begin ... end - 1.
template <class T>
void correlate(const ConvShape& s, Sequence<const T> x, Sequence<const T> dy, int64_t begin, int64_t end, T* sums) {
  const int64_t rows = s.W <= 16 ? 16 : 32;  // many sums are worth more rows between their loads and stores
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = std::min(end, first + rows);
    for_channels<T>(s, [&]<bool partial>(int64_t c, int64_t lanes) {
      const auto block = [&]<int count>(int64_t w) {
        const int64_t t = std::max(first, w);
        correlate_block<count, partial>(Sequence<const T>{x[t - w] + c, x.stride},
                                        Sequence<const T>{dy[t] + c, dy.stride}, t - w, last - t,
                                        sums + taps_begin<T>(s, c) + w * kLanes<T>, lanes);
      };
      const int64_t reached = std::min(s.W, last);
      int64_t w = 0;
      for (; w + 8 <= reached; w += 8) block.template operator()<8>(w);
      for (; w + 4 <= reached; w += 4) block.template operator()<4>(w);
      for (; w < reached; ++w) block.template operator()<1>(w);
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
