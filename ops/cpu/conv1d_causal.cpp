#include "ops/conv1d_causal.h"

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

// Short filters stream through memory a few rows at a time; long ones stay on some channels while these are cached.
int64_t rows_at_once(int64_t width) { return width <= 16 ? 8 : 64; }

// Calls body.template operator()<partial>(c, lanes) for every vector of channels.
template <class T, class Body>
void for_channels(int64_t C, const Body& body) {
  constexpr int64_t size = simd::Vec<T>::size;
  int64_t c = 0;
  for (; c + size <= C; c += size) body.template operator()<false>(c, size);
  if (c < C) body.template operator()<true>(c, C - c);
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

// Rows t ... t + R - 1 of the result for one vector of channels; x and y point to row t, taps to tap 0.
template <int R, bool partial, class T>
void filter_block(const ConvShape& s, const T* taps, const T* bias, Sequence<const T> x, Sequence<T> y, int64_t t,
                  int64_t lanes) {
  using Vec = simd::Vec<T>;
  Vec sum[R];
  for (int r = 0; r < R; ++r) sum[r] = bias ? load<partial>(bias, lanes) : Vec(T(0));
  // Taps w ... w + N - 1, neighbours of which meet the same rows of x.
  const auto add = [&]<int... N>(int64_t w, std::integer_sequence<int, N...>, const auto& exists) {
    const Vec tap[] = {load<partial>(taps + (w + N) * s.C, lanes)...};
    for (int n = 0; n < static_cast<int>(sizeof...(N)); ++n)
      for (int r = 0; r < R; ++r)
        if (exists(r)) sum[r] += tap[n] * load<partial>(x[r - n - w], lanes);
  };
  const auto always = [](int) { return true; };
  const int64_t full = std::min(s.W, t + 1), end = std::min(s.W, t + R);
  int64_t w = 0;
  for (; w + 4 <= full; w += 4) add(w, std::make_integer_sequence<int, 4>(), always);
  for (; w < full; ++w) add(w, std::make_integer_sequence<int, 1>(), always);
  for (; w < end; ++w) add(w, std::make_integer_sequence<int, 1>(), [&](int r) { return r >= w - t; });
  for (int r = 0; r < R; ++r) store<partial>(sum[r], y[r], lanes);
}

// y[t] = bias + sum over w <= t of taps[w] x[t - w] for rows begin ... end - 1.
template <class T>
void filter(const ConvShape& s, const T* taps, const T* bias, Sequence<const T> x, Sequence<T> y, int64_t begin,
            int64_t end) {
  constexpr int R = 8;
  const int64_t rows = rows_at_once(s.W);
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = std::min(end, first + rows);
    for_channels<T>(s.C, [&]<bool partial>(int64_t c, int64_t lanes) {
      const auto block = [&]<int count>(int64_t t) {
        filter_block<count, partial>(s, taps + c, bias ? bias + c : nullptr, {x[t] + c, x.stride}, {y[t] + c, y.stride},
                                     t, lanes);
      };
      int64_t t = first;
      for (; t + R <= last; t += R) block.template operator()<R>(t);
      for (; t < last; ++t) block.template operator()<1>(t);
    });
  }
}

// Adds dy[t] x[t - w] to the sums of taps w ... w + N - 1 for one vector of channels and rows begin ... end - 1.
template <int N, bool partial, class T>
void correlate_block(const ConvShape& s, Sequence<const T> x, Sequence<const T> dy, int64_t begin, int64_t end,
                     int64_t w, T* sums, int64_t lanes) {
  using Vec = simd::Vec<T>;
  Vec sum[N];
  for (int n = 0; n < N; ++n) sum[n] = load<partial>(sums + (w + n) * s.C, lanes);
  const auto add = [&]<int... R>(int64_t t, std::integer_sequence<int, R...>, const auto& exists) {
    const Vec cotangent[] = {load<partial>(dy[t + R], lanes)...};
    for (int r = 0; r < static_cast<int>(sizeof...(R)); ++r)
      for (int n = 0; n < N; ++n)
        if (exists(n)) sum[n] += cotangent[r] * load<partial>(x[t - w + r - n], lanes);
  };
  int64_t t = std::max(begin, w);
  for (; t < std::min(end, w + N - 1); ++t)
    add(t, std::make_integer_sequence<int, 1>(), [&](int n) { return t - w - n >= 0; });
  const auto always = [](int) { return true; };
  for (; t + 4 <= end; t += 4) add(t, std::make_integer_sequence<int, 4>(), always);
  for (; t < end; ++t) add(t, std::make_integer_sequence<int, 1>(), always);
  for (int n = 0; n < N; ++n) store<partial>(sum[n], sums + (w + n) * s.C, lanes);
}

// sums[w] += sum over t >= w of dy[t] x[t - w] for rows begin ... end - 1.
template <class T>
void correlate(const ConvShape& s, Sequence<const T> x, Sequence<const T> dy, int64_t begin, int64_t end, T* sums) {
  const int64_t rows = 2 * rows_at_once(s.W);
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = std::min(end, first + rows), reached = std::min(s.W, last);
    for_channels<T>(s.C, [&]<bool partial>(int64_t c, int64_t lanes) {
      const auto block = [&]<int count>(int64_t w) {
        correlate_block<count, partial>(s, {x.data + c, x.stride}, {dy.data + c, dy.stride}, first, last, w, sums + c,
                                        lanes);
      };
      int64_t w = 0;
      for (; w + 8 <= reached; w += 8) block.template operator()<8>(w);
      for (; w + 4 <= reached; w += 4) block.template operator()<4>(w);
      for (; w < reached; ++w) block.template operator()<1>(w);
    });
  }
}

// out[c] += a[c] * b[c]
template <class T>
void add_product(int64_t C, const T* a, const T* b, T* out) {
  for_channels<T>(C, [&]<bool partial>(int64_t c, int64_t lanes) {
    store<partial>(load<partial>(out + c, lanes) + load<partial>(a + c, lanes) * load<partial>(b + c, lanes), out + c,
                   lanes);
  });
}

// Calls body(t, w, row) for every tap w of rows begin ... end - 1 that meets row `row` of the initial state.
template <class Body>
void for_initial(const ConvShape& s, int64_t begin, int64_t end, const Body& body) {
  for (int64_t t = begin; t < std::min(end, s.W - 1); ++t)
    for (int64_t w = t + 1; w < s.W; ++w) body(t, w, s.W - 1 + t - w);
}

template <class T>
void expand_taps(const ConvShape& s, const T* weight, T* taps) {
  for (int64_t w = 0; w < s.W; ++w)
    for (int64_t c = 0; c < s.C; ++c) taps[w * s.C + c] = weight[c / (s.C / s.filters) * s.W + w];
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

}  // namespace

template <class T>
void run(Cpu cpu, const Conv1dCausalFwd<T>& a) {
  const ConvShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  expand_taps(s, a.weight, a.workspace);
  const int64_t units_per_piece = std::max<int64_t>(1, s.units() / ConvShape::kMostPieces);
  parallel_ranges(cpu, s.units(), units_per_piece, [&](int64_t first, int64_t last) {
    for_units(s, first, last, [&](int64_t b, int64_t begin, int64_t end) {
      const Sequence<T> y{a.y + b * s.L * s.C, s.C};
      filter<T>(s, a.workspace, a.bias, {a.x + b * a.x_batch, a.x_row}, y, begin, end);
      if (!a.initial) return;
      for_initial(s, begin, end, [&](int64_t t, int64_t w, int64_t row) {
        add_product(s.C, a.workspace + w * s.C, a.initial + (b * (s.W - 1) + row) * s.C, y[t]);
      });
    });
  });
}

namespace {

// Of one stretch of time: what it adds to the sums [W, C] of dweight and [C] of dbias, its part of dx, and dinitial.
template <class T>
void pull_back(const Conv1dCausalBwd<T>& a, const T* taps, T* sums, int64_t b, int64_t begin, int64_t end) {
  const ConvShape& s = a.shape;
  const Sequence<const T> x{a.x + b * a.x_batch, a.x_row}, dy{a.dy + b * a.dy_batch, a.dy_row};
  const T* const initial = a.initial ? a.initial + b * (s.W - 1) * s.C : nullptr;
  if (a.dweight) {
    correlate(s, x, dy, begin, end, sums);
    if (initial)
      for_initial(s, begin, end, [&](int64_t t, int64_t w, int64_t row) {
        add_product(s.C, dy[t], initial + row * s.C, sums + w * s.C);
      });
  }
  if (a.dbias) {
    T* const sum = sums + s.W * s.C;
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = 0; c < s.C; ++c) sum[c] += dy[t][c];
  }
  if (a.dx) {  // dx[t] = sum over w of taps[w] dy[t + w]: the filter itself, backwards in time
    T* const dx = a.dx + b * s.L * s.C;
    filter<T>(s, taps, nullptr, {dy[s.L - 1], -dy.stride}, {dx + (s.L - 1) * s.C, -s.C}, s.L - end, s.L - begin);
  }
  if (a.dinitial && begin == 0) {
    T* const dinitial = a.dinitial + b * (s.W - 1) * s.C;
    for_initial(s, 0, s.L, [&](int64_t t, int64_t w, int64_t row) {
      add_product(s.C, taps + w * s.C, dy[t], dinitial + row * s.C);
    });
  }
}

// Sums over the pieces and over the channels that share a filter, in their order.
template <class T>
void combine(const Conv1dCausalBwd<T>& a, const T* sums) {
  const ConvShape& s = a.shape;
  const auto total = [&](int64_t w, int64_t c) {
    T sum = 0;
    for (int64_t piece = 0; piece < s.pieces(); ++piece) sum += sums[(piece * (s.W + 1) + w) * s.C + c];
    return sum;
  };
  if (a.dweight) {
    std::fill_n(a.dweight, s.filters * s.W, T(0));
    for (int64_t w = 0; w < s.W; ++w)
      for (int64_t c = 0; c < s.C; ++c) a.dweight[c / (s.C / s.filters) * s.W + w] += total(w, c);
  }
  if (a.dbias)
    for (int64_t c = 0; c < s.C; ++c) a.dbias[c] = total(s.W, c);
}

}  // namespace

template <class T>
void run(Cpu cpu, const Conv1dCausalBwd<T>& a) {
  const ConvShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T *const taps = a.workspace, *const sums = taps + s.W * s.C;
  expand_taps(s, a.weight, taps);
  if (a.dinitial) std::fill_n(a.dinitial, s.B * (s.W - 1) * s.C, T(0));
  const int64_t units = s.units(), pieces = s.pieces(), sums_size = (s.W + 1) * s.C;
  parallel_for(cpu, pieces, [&](int64_t piece) {
    T* const own = sums + piece * sums_size;
    std::fill_n(own, sums_size, T(0));
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
