#include "ops/reduce.h"

#include <limits>

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// A kind of reduction of rows of T: of<Team>(x, begin, end) reduces a stretch of a row, in every thread of the team;
// combine joins two neighbouring stretches; finish gives the result over n elements. As on the CPU.

template <class T>
using Partial = ReducePartial<acc_t<T>>;

template <class T>
struct Sum {
  using A = acc_t<T>;
  bool mean;
  template <class Team>
  __device__ Partial<T> of(const T* x, int64_t begin, int64_t end) const {
    return {cuda::team_sum<Team>(end - begin, [=](int64_t i) { return A(x[begin + i]); }), A(0), 0};
  }
  __device__ Partial<T> combine(Partial<T> a, Partial<T> b) const { return {a.value + b.value, A(0), 0}; }
  __device__ A finish(Partial<T> a, int64_t n) const { return mean ? a.value / A(n) : a.value; }
};

template <class T>
struct SumOfSquares {
  using A = acc_t<T>;
  template <class Team>
  __device__ Partial<T> of(const T* x, int64_t begin, int64_t end) const {
    const auto square = [=](int64_t i) { return A(x[begin + i]) * A(x[begin + i]); };
    return {cuda::team_sum<Team>(end - begin, square), A(0), 0};
  }
  __device__ Partial<T> combine(Partial<T> a, Partial<T> b) const { return {a.value + b.value, A(0), 0}; }
  __device__ A finish(Partial<T> a, int64_t) const { return std::sqrt(a.value); }
};

template <class Team, class T>
__device__ acc_t<T> largest_of(const T* x, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  A largest = -std::numeric_limits<A>::infinity();
  for (int64_t i = begin + Team::rank(); i < end; i += Team::kSize) largest = cuda::Largest::combine(largest, A(x[i]));
  return Team::template reduce<cuda::Largest>(largest);
}

template <class T>
struct Max {
  using A = acc_t<T>;
  template <class Team>
  __device__ Partial<T> of(const T* x, int64_t begin, int64_t end) const {
    const A value = largest_of<Team>(x, begin, end);
    int64_t place = end;
    for (int64_t i = begin + Team::rank(); i < place; i += Team::kSize)
      if (A(x[i]) == value || A(x[i]) != A(x[i])) place = i;
    return {value, A(0), Team::template reduce<cuda::Smallest>(place)};
  }
  __device__ Partial<T> combine(Partial<T> a, Partial<T> b) const {
    return a.value >= b.value || a.value != a.value ? a : b;
  }
  __device__ A finish(Partial<T> a, int64_t) const { return a.value; }
};

template <class T>
struct LogSumExp {
  using A = acc_t<T>;
  template <class Team>
  __device__ Partial<T> of(const T* x, int64_t begin, int64_t end) const {
    const A largest = largest_of<Team>(x, begin, end);
    if (std::isinf(largest)) return {largest, A(largest > 0), 0};
    const auto term = [=](int64_t i) { return std::exp(A(x[begin + i]) - largest); };
    return {largest, cuda::team_sum<Team>(end - begin, term), 0};
  }
  __device__ Partial<T> combine(Partial<T> a, Partial<T> b) const {
    const Partial<T> upper = a.value >= b.value ? a : b, lower = a.value >= b.value ? b : a;
    const A share = upper.value == lower.value ? A(1) : std::exp(lower.value - upper.value);
    return {upper.value, upper.extra + lower.extra * share, 0};
  }
  __device__ A finish(Partial<T> a, int64_t) const { return a.value + std::log(a.extra); }
};

// Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
template <class T>
struct Variance {
  using A = acc_t<T>;
  double correction;
  template <class Team>
  __device__ Partial<T> of(const T* x, int64_t begin, int64_t end) const {
    const int64_t count = end - begin;
    const A mean = cuda::team_sum<Team>(count, [=](int64_t i) { return A(x[begin + i]); }) / A(count);
    const auto square = [=](int64_t i) {
      const A deviation = A(x[begin + i]) - mean;
      return deviation * deviation;
    };
    return {mean, cuda::team_sum<Team>(count, square), count};
  }
  __device__ Partial<T> combine(Partial<T> a, Partial<T> b) const {
    const A share = A(b.count) / A(a.count + b.count), delta = b.value - a.value;
    return {a.value + delta * share, a.extra + b.extra + delta * delta * share * A(a.count), a.count + b.count};
  }
  __device__ A finish(Partial<T> a, int64_t n) const { return a.extra / (A(n) - A(correction)); }
};

template <class T, class Kind>
__device__ void write(const ReduceFwd<T>& a, const Kind& kind, int64_t row, const Partial<T>& result) {
  a.y[row] = T(kind.finish(result, a.n));
  if (a.mean) a.mean[row] = T(result.value);
  if (a.index) a.index[row] = result.count;
}

// A team per row, or per stretch of a row where rows have several.
template <class Team, class T, class Kind>
__global__ void __launch_bounds__(cuda::kThreads) reduce_rows(ReduceFwd<T> a, Kind kind, int64_t stretches) {
  for (int64_t piece = Team::first(); piece < a.outer * stretches; piece += Team::step()) {
    const int64_t row = piece / stretches, begin = (piece - row * stretches) * ReduceFwd<T>::kRowStretch;
    const int64_t end = stretches == 1 ? a.n : std::min(a.n, begin + ReduceFwd<T>::kRowStretch);
    const Partial<T> result = kind.template of<Team>(a.x + row * a.n, begin, end);
    if (Team::rank() > 0) continue;
    if (stretches == 1) {
      write(a, kind, row, result);
    } else {
      static_cast<Partial<T>*>(a.workspace)[piece] = result;
    }
  }
}

// A block per row: each thread joins neighbouring stretches, then neighbouring threads join theirs.
template <class T, class Kind>
__global__ void __launch_bounds__(cuda::kThreads) join_stretches(ReduceFwd<T> a, Kind kind, int64_t stretches) {
  __shared__ Partial<T> joined[cuda::kThreads];
  const int64_t threads = std::min<int64_t>(cuda::kThreads, stretches), rank = threadIdx.x;
  for (int64_t row = blockIdx.x; row < a.outer; row += gridDim.x) {
    const Partial<T>* const parts = static_cast<const Partial<T>*>(a.workspace) + row * stretches;
    if (rank < threads) {
      const int64_t begin = rank * stretches / threads, end = (rank + 1) * stretches / threads;
      Partial<T> result = parts[begin];
      for (int64_t part = begin + 1; part < end; ++part) result = kind.combine(result, parts[part]);
      joined[rank] = result;
    }
    __syncthreads();
    for (int64_t distance = 1; distance < threads; distance *= 2) {
      if (rank % (2 * distance) == 0 && rank + distance < threads)
        joined[rank] = kind.combine(joined[rank], joined[rank + distance]);
      __syncthreads();
    }
    if (rank == 0) write(a, kind, row, joined[0]);
    __syncthreads();
  }
}

// y[o, part, i] = sum of x[o, rows of the part, i], divided by `divisor`: a thread per sum, neighbours on neighbouring
// i.
template <class X, class Y>
__global__ void sum_rows(const X* x, Y* y, int64_t outer, int64_t n, int64_t inner, int64_t parts,
                         int64_t rows_per_part, acc_t<Y> divisor) {
  using A = acc_t<Y>;
  for (int64_t k = cuda::first_index(); k < outer * parts * inner; k += cuda::index_step()) {
    const int64_t i = k % inner, part = k / inner % parts, o = k / inner / parts;
    const int64_t begin = part * rows_per_part, end = std::min(n, begin + rows_per_part);
    A sum(0);
    for (int64_t row = begin; row < end; ++row) sum += A(x[(o * n + row) * inner + i]);
    y[k] = Y(sum / divisor);
  }
}

template <class T, class Kind>
void reduce(Cuda cuda, const ReduceFwd<T>& a, const Kind& kind) {
  const int64_t stretches = std::max<int64_t>(1, a.stretches(a.n, 1));
  cuda::launch_rows(cuda, a.outer * stretches, a.n, reduce_rows<cuda::WarpTeam, T, Kind>,
                    reduce_rows<cuda::BlockTeam, T, Kind>, a, kind, stretches);
  if (stretches == 1 || a.outer == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(a.outer, 1 << 16));
  cuda::launch(cuda, dim3(blocks), dim3(cuda::kThreads), join_stretches<T, Kind>, a, kind, stretches);
}

template <class T>
void reduce_columns(Cuda cuda, const ReduceFwd<T>& a) {
  using A = acc_t<T>;
  const A divisor = a.kind == Reduction::mean ? A(a.n) : A(1);
  const int64_t stretches = a.stretches(a.n, a.inner), results = a.outer * a.inner;
  if (stretches <= 1) {
    cuda::launch_elements(cuda, results, sum_rows<T, T>, a.x, a.y, a.outer, a.n, a.inner, 1, a.n, divisor);
    return;
  }
  auto* const partial = static_cast<A*>(a.workspace);
  cuda::launch_elements(cuda, results * stretches, sum_rows<T, A>, a.x, partial, a.outer, a.n, a.inner, stretches,
                        a.kColumnStretch, A(1));
  cuda::launch_elements(cuda, results, sum_rows<A, T>, partial, a.y, a.outer, stretches, a.inner, 1, stretches,
                        divisor);
}

template <class T>
__global__ void max_backward(MaxBwd<T> a) {
  for (int64_t i = cuda::first_index(); i < a.outer * a.n; i += cuda::index_step()) {
    const int64_t row = i / a.n;
    a.dx[i] = i - row * a.n == a.index[row] ? a.dy[row] : T(0);
  }
}

// inner = 1: a warp per row, which goes along it in steps of its width.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) cumsum_rows(CumsumFwd<T> a) {
  const int lane = cuda::WarpTeam::rank();
  for (int64_t row = cuda::WarpTeam::first(); row < a.outer; row += cuda::WarpTeam::step()) {
    double before = 0;  // sum of all elements before this step
    for (int64_t start = 0; start < a.n; start += cuda::kWarp) {
      const int64_t t = start + lane, at = row * a.n + (a.reverse ? a.n - 1 - t : t);
      double sum = t < a.n ? static_cast<double>(acc_t<T>(a.x[at])) : 0;
      for (int distance = 1; distance < cuda::kWarp; distance *= 2) {
        const double left = __shfl_sync(0xffffffffu, sum, lane < distance ? lane : lane - distance);
        if (lane >= distance) sum += left;
      }
      if (t < a.n) a.y[at] = T(static_cast<acc_t<T>>(before + sum));
      before += __shfl_sync(0xffffffffu, sum, cuda::kWarp - 1);
    }
  }
}

// inner > 1: a thread per column.
template <class T>
__global__ void cumsum_columns(CumsumFwd<T> a) {
  for (int64_t column = cuda::first_index(); column < a.outer * a.inner; column += cuda::index_step()) {
    const int64_t o = column / a.inner, start = o * a.n * a.inner + (column - o * a.inner);
    double sum = 0;
    for (int64_t t = 0; t < a.n; ++t) {
      const int64_t at = start + (a.reverse ? a.n - 1 - t : t) * a.inner;
      a.y[at] = T(static_cast<acc_t<T>>(sum += static_cast<double>(acc_t<T>(a.x[at]))));
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const ReduceFwd<T>& a) {
  switch (a.kind) {
    case Reduction::sum:
    case Reduction::mean:
      return a.inner == 1 ? reduce(cuda, a, Sum<T>{a.kind == Reduction::mean}) : reduce_columns(cuda, a);
    case Reduction::max:
      return reduce(cuda, a, Max<T>{});
    case Reduction::logsumexp:
      return reduce(cuda, a, LogSumExp<T>{});
    case Reduction::var:
      return reduce(cuda, a, Variance<T>{a.correction});
    case Reduction::norm2:
      return reduce(cuda, a, SumOfSquares<T>{});
  }
}

template <class T>
void run(Cuda cuda, const MaxBwd<T>& a) {
  cuda::launch_elements(cuda, a.outer * a.n, max_backward<T>, a);
}

template <class T>
void run(Cuda cuda, const CumsumFwd<T>& a) {
  if (a.inner == 1) {
    cuda::launch_rows(cuda, a.outer, 1, cumsum_rows<T>, cumsum_rows<T>, a);
  } else {
    cuda::launch_elements(cuda, a.outer * a.inner, cumsum_columns<T>, a);
  }
}

template void run(Cuda, const ReduceFwd<float>&);
template void run(Cuda, const ReduceFwd<double>&);
template void run(Cuda, const ReduceFwd<bf16>&);
template void run(Cuda, const MaxBwd<float>&);
template void run(Cuda, const MaxBwd<double>&);
template void run(Cuda, const MaxBwd<bf16>&);
template void run(Cuda, const CumsumFwd<float>&);
template void run(Cuda, const CumsumFwd<double>&);
template void run(Cuda, const CumsumFwd<bf16>&);

}  // namespace margay::kernels
