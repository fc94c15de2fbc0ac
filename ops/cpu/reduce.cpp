#include "ops/reduce.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"
#include "ops/cpu/simd_math.h"

namespace margay::kernels {
namespace {

// A kind of reduction of rows: of(x, begin, end) reduces a stretch of a row x; combine joins two neighbouring
// stretches; finish gives the result over n elements.

template <class T>
struct Sum {
  bool mean;
  ReducePartial<T> of(const T* x, int64_t begin, int64_t end) const {
    return {pairwise_sum<T>(begin, end, [x](int64_t i, int64_t n) { return simd::Vec<T>::load(x + i, n); }), 0, 0};
  }
  ReducePartial<T> combine(ReducePartial<T> a, ReducePartial<T> b) const { return {a.value + b.value, 0, 0}; }
  T finish(ReducePartial<T> a, int64_t n) const { return mean ? a.value / T(n) : a.value; }
};

template <class T>
struct SumOfSquares {
  ReducePartial<T> of(const T* x, int64_t begin, int64_t end) const {
    const auto square = [x](int64_t i, int64_t n) {
      const auto v = simd::Vec<T>::load(x + i, n);
      return v * v;
    };
    return {pairwise_sum<T>(begin, end, square), 0, 0};
  }
  ReducePartial<T> combine(ReducePartial<T> a, ReducePartial<T> b) const { return {a.value + b.value, 0, 0}; }
  T finish(ReducePartial<T> a, int64_t) const { return std::sqrt(a.value); }
};

template <class T>
struct Max {
  ReducePartial<T> of(const T* x, int64_t begin, int64_t end) const {
    const T value = row_max(x + begin, end - begin);
    int64_t index = begin;
    while (x[index] != value && !(value != value && x[index] != x[index])) ++index;
    return {value, 0, index};
  }
  ReducePartial<T> combine(ReducePartial<T> a, ReducePartial<T> b) const {
    return a.value >= b.value || a.value != a.value ? a : b;
  }
  T finish(ReducePartial<T> a, int64_t) const { return a.value; }
};

template <class T>
struct LogSumExp {
  ReducePartial<T> of(const T* x, int64_t begin, int64_t end) const {
    const T largest = row_max(x + begin, end - begin);
    if (std::isinf(largest)) return {largest, T(largest > 0), 0};
    const auto term = [x, largest](int64_t i, int64_t n) {
      return exp(simd::Vec<T>::load(x + i, n, -std::numeric_limits<T>::infinity()) - largest);
    };
    return {largest, pairwise_sum<T>(begin, end, term), 0};
  }
  ReducePartial<T> combine(ReducePartial<T> a, ReducePartial<T> b) const {
    if (!(a.value >= b.value)) std::swap(a, b);
    return {a.value, a.value == b.value ? a.extra + b.extra : a.extra + b.extra * std::exp(b.value - a.value), 0};
  }
  T finish(ReducePartial<T> a, int64_t) const { return a.value + std::log(a.extra); }
};

// Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
template <class T>
struct Variance {
  double correction;
  ReducePartial<T> of(const T* x, int64_t begin, int64_t end) const {
    const T mean = Sum<T>{true}.finish(Sum<T>{true}.of(x, begin, end), end - begin);
    const auto square = [x, mean](int64_t i, int64_t n) {
      const auto v = simd::Vec<T>::load(x + i, n, mean) - mean;
      return v * v;
    };
    return {mean, pairwise_sum<T>(begin, end, square), end - begin};
  }
  ReducePartial<T> combine(ReducePartial<T> a, ReducePartial<T> b) const {
    const T share = T(b.count) / T(a.count + b.count), delta = b.value - a.value;
    return {a.value + delta * share, a.extra + b.extra + delta * delta * share * T(a.count), a.count + b.count};
  }
  T finish(ReducePartial<T> a, int64_t n) const { return a.extra / (T(n) - T(correction)); }
};

// Joins neighbouring stretches pairwise, in order.
template <class T, class Kind>
ReducePartial<T> combine_all(const Kind& kind, const ReducePartial<T>* parts, int64_t count) {
  if (count == 1) return parts[0];
  const int64_t half = count / 2;
  return kind.combine(combine_all(kind, parts, half), combine_all(kind, parts + half, count - half));
}

template <class T, class Kind>
void reduce_rows(Cpu cpu, const ReduceFwd<T>& a, const Kind& kind) {
  const auto write = [&](int64_t row, ReducePartial<T> result) {
    a.y[row] = kind.finish(result, a.n);
    if (a.mean) a.mean[row] = result.value;
    if (a.index) a.index[row] = result.count;
  };
  const int64_t stretches = a.stretches(a.n, 1);
  if (stretches <= 1) {
    parallel_ranges(cpu, a.outer, rows_per_piece(a.n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) write(row, kind.of(a.x + row * a.n, 0, a.n));
    });
    return;
  }
  auto* const partials = static_cast<ReducePartial<T>*>(a.workspace);
  parallel_for(cpu, a.outer * stretches, [&](int64_t piece) {
    const int64_t row = piece / stretches, begin = piece % stretches * a.kRowStretch;
    partials[piece] = kind.of(a.x + row * a.n, begin, std::min(a.n, begin + a.kRowStretch));
  });
  for (int64_t row = 0; row < a.outer; ++row) write(row, combine_all(kind, partials + row * stretches, stretches));
}

constexpr int64_t kColumnBlock = 64;

// sums[c] = sum over rows of x[row * stride + c], for `width` <= kColumnBlock columns; pairwise over the rows.
template <class T>
void sum_columns(const T* x, int64_t stride, int64_t rows, int64_t width, T* sums) {
  using Vec = simd::Vec<T>;
  constexpr int64_t leaf = 32;
  if (rows <= leaf) {
    for (int64_t c = 0; c < width; c += Vec::size) {
      Vec sum(T(0));
      for (int64_t row = 0; row < rows; ++row) sum += Vec::load(x + row * stride + c, width - c);
      sum.store(sums + c, width - c);
    }
    return;
  }
  const int64_t half = (rows / 2 + leaf - 1) / leaf * leaf;
  T lower[kColumnBlock];
  sum_columns(x, stride, half, width, sums);
  sum_columns(x + half * stride, stride, rows - half, width, lower);
  for (int64_t c = 0; c < width; ++c) sums[c] += lower[c];
}

template <class T>
void reduce_columns(Cpu cpu, const ReduceFwd<T>& a) {
  const int64_t blocks = (a.inner + kColumnBlock - 1) / kColumnBlock, stretches = a.stretches(a.n, a.inner);
  // Sums `rows` rows of each block of columns of x [outer, parts of the rows, inner].
  const auto sum_blocks = [&](const T* x, int64_t rows, int64_t parts, int64_t rows_per_part, T* y) {
    parallel_for(cpu, a.outer * parts * blocks, [&](int64_t piece) {
      const int64_t column = piece % blocks * kColumnBlock, part = piece / blocks % parts, o = piece / blocks / parts;
      const int64_t first = part * rows_per_part;
      sum_columns(x + (o * rows + first) * a.inner + column, a.inner, std::min(rows_per_part, rows - first),
                  std::min(kColumnBlock, a.inner - column), y + (o * parts + part) * a.inner + column);
    });
  };
  if (stretches <= 1) {
    sum_blocks(a.x, a.n, 1, a.n, a.y);
  } else {
    T* const partial = static_cast<T*>(a.workspace);
    sum_blocks(a.x, a.n, stretches, a.kColumnStretch, partial);
    sum_blocks(partial, stretches, 1, stretches, a.y);
  }
  if (a.kind == Reduction::mean)
    for (int64_t i = 0; i < a.outer * a.inner; ++i) a.y[i] /= T(a.n);
}

}  // namespace

template <class T>
void run(Cpu cpu, const ReduceFwd<T>& a) {
  switch (a.kind) {
    case Reduction::sum:
    case Reduction::mean:
      return a.inner == 1 ? reduce_rows(cpu, a, Sum<T>{a.kind == Reduction::mean}) : reduce_columns(cpu, a);
    case Reduction::max:
      return reduce_rows(cpu, a, Max<T>{});
    case Reduction::logsumexp:
      return reduce_rows(cpu, a, LogSumExp<T>{});
    case Reduction::var:
      return reduce_rows(cpu, a, Variance<T>{a.correction});
    case Reduction::norm2:
      return reduce_rows(cpu, a, SumOfSquares<T>{});
  }
}

template <class T>
void run(Cpu cpu, const MaxBwd<T>& a) {
  parallel_ranges(cpu, a.outer, rows_per_piece(a.n), [&](int64_t begin, int64_t end) {
    std::fill(a.dx + begin * a.n, a.dx + end * a.n, T(0));
    for (int64_t row = begin; row < end; ++row) a.dx[row * a.n + a.index[row]] = a.dy[row];
  });
}

template <class T>
void run(Cpu cpu, const CumsumFwd<T>& a) {
  const int64_t blocks = (a.inner + kColumnBlock - 1) / kColumnBlock;
  const int64_t grain = rows_per_piece(a.n * std::min(a.inner, kColumnBlock));
  const int64_t first = a.reverse ? (a.n - 1) * a.inner : 0, step = a.reverse ? -a.inner : a.inner;
  parallel_ranges(cpu, a.outer * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t column = block % blocks * kColumnBlock, start = block / blocks * a.n * a.inner + first + column;
      const T* x = a.x + start;
      T* y = a.y + start;
      if (a.inner == 1) {
        double sum = 0;
        for (int64_t t = 0; t < a.n; ++t) y[t * step] = static_cast<T>(sum += static_cast<double>(x[t * step]));
      } else {
        const int64_t width = std::min(kColumnBlock, a.inner - column);
        double sums[kColumnBlock] = {};
        for (int64_t t = 0; t < a.n; ++t, x += step, y += step)
          for (int64_t c = 0; c < width; ++c) y[c] = static_cast<T>(sums[c] += static_cast<double>(x[c]));
      }
    }
  });
}

template void run(Cpu, const ReduceFwd<float>&);
template void run(Cpu, const ReduceFwd<double>&);
template void run(Cpu, const MaxBwd<float>&);
template void run(Cpu, const MaxBwd<double>&);
template void run(Cpu, const CumsumFwd<float>&);
template void run(Cpu, const CumsumFwd<double>&);

}  // namespace margay::kernels
