#include "ops/conv1d_causal.h"

#include <algorithm>

#include "engine/cuda/packs.cuh"
#include "engine/cuda/reduce.cuh"

namespace margay::kernels {
namespace {

constexpr int kRun = 32;  // tokens that a thread goes through
constexpr int kStep = 4;  // of them it reads at a time

/// Channels that a thread of the kernels for short filters has: more of bf16 would not fit in its registers.
template <class T>
constexpr int kChannels = std::min(4, cuda::kPackOf<T>);

/// The taps of channel c.
template <class T>
__device__ const T* taps_of(const ConvShape& s, const T* weight, int64_t c) {
  return weight + (s.filters == s.C ? c : c / (s.C / s.filters)) * s.W;
}

/// Sequences in memory, perhaps backwards in time. Before them come W - 1 rows of `initial` [B, W - 1, C], or zeros
/// where it is null.
template <class T>
struct Sequences {
  ConvShape shape;
  const T* data;
  int64_t batch, row;  // distances in elements
  const T* initial = nullptr;

  template <int N>
  __device__ cuda::Pack<T, N> load(int64_t b, int64_t t, int64_t c) const {
    if (t >= 0) return cuda::load<N>(data + b * batch + t * row + c);
    if (!initial) return cuda::repeat<N>(T(acc_t<T>(0)));
    return cuda::load<N>(initial + (b * (shape.W - 1) + shape.W - 1 + t) * shape.C + c);
  }
  template <int N>
  bool has_packs() const {
    return shape.C % N == 0 && batch % N == 0 && row % N == 0 && cuda::aligned<N>(data, initial);
  }
};

/// kStep rows of a pack of channels and the K - 1 >= W - 1 rows before them, in registers.
template <class T, int N, int K>
class Window {
 public:
  __device__ Window(const Sequences<T>& x, int64_t b, int64_t begin, int64_t c) : x_(x), b_(b), c_(c) {
#pragma unroll
    for (int w = 1; w < K; ++w)
      if (w < x.shape.W) rows_[K - 1 - w] = x.template load<N>(b, begin - w, c);
  }
  /// Rows t ... t + kStep - 1, or those before `end`.
  __device__ void read(int64_t t, int64_t end) {
#pragma unroll
    for (int u = 0; u < kStep; ++u)
      if (t + u < end) rows_[K - 1 + u] = x_.template load<N>(b_, t + u, c_);
  }
  /// Row t + u - w of them.
  __device__ const cuda::Pack<T, N>& row(int u, int w) const { return rows_[K - 1 + u - w]; }
  /// Goes on by kStep rows.
  __device__ void advance() {
#pragma unroll
    for (int j = 0; j < K - 1; ++j) rows_[j] = rows_[j + kStep];
  }

 private:
  const Sequences<T>& x_;
  int64_t b_, c_;
  cuda::Pack<T, N> rows_[K - 1 + kStep] = {};
};

/// y[b,t] = bias + sum over w < W of taps[w] x[b,t-w], the rows of y being `y_row` apart. Sums go in the order of the
/// taps, so that a sequence fed in parts gives the bits of the whole.
template <class T>
struct Filter {
  Sequences<T> x;
  const T *weight, *bias;
  T* y;
  int64_t y_row;
};

// W <= K: a thread per pack of channels and run of tokens, so that x is read about once.
template <int N, int K, class T>
__global__ void __launch_bounds__(cuda::kThreads) short_filter(Filter<T> a) {
  using A = acc_t<T>;
  const ConvShape& s = a.x.shape;
  const int64_t packs = s.C / N, runs = (s.L + kRun - 1) / kRun;
  for (int64_t i = cuda::first_index(); i < s.B * runs * packs; i += cuda::index_step()) {
    const int64_t c = i % packs * N, begin = i / packs % runs * kRun, end = min(s.L, begin + kRun);
    const int64_t b = i / packs / runs;
    Window<T, N, K> x(a.x, b, begin, c);
    cuda::Pack<T, N> taps[K];
#pragma unroll
    for (int w = 0; w < K; ++w)
      for (int n = 0; n < N; ++n) taps[w][n] = w < s.W ? taps_of(s, a.weight, c + n)[w] : T(A(0));
    const auto bias = a.bias ? cuda::load<N>(a.bias + c) : cuda::repeat<N>(T(A(0)));
    for (int64_t t = begin; t < end; t += kStep, x.advance()) {
      x.read(t, end);
#pragma unroll
      for (int u = 0; u < kStep; ++u) {
        if (t + u >= end) break;
        auto sum = cuda::map([](T value) { return A(value); }, bias);
#pragma unroll
        for (int w = 0; w < K; ++w)
          for (int n = 0; n < N; ++n)
            if (w < s.W) sum[n] += A(taps[w][n]) * A(x.row(u, w)[n]);
        cuda::store(a.y + b * s.L * s.C + (t + u) * a.y_row + c, cuda::map([](A value) { return T(value); }, sum));
      }
    }
  }
}

// Any W: a thread per element of y.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) long_filter(Filter<T> a) {
  using A = acc_t<T>;
  const ConvShape& s = a.x.shape;
  for (int64_t i = cuda::first_index(); i < s.B * s.L * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, t = i / s.C % s.L, b = i / s.C / s.L;
    const T* const taps = taps_of(s, a.weight, c);
    A sum = a.bias ? A(a.bias[c]) : A(0);
    for (int64_t w = 0; w < (a.x.initial ? s.W : min(s.W, t + 1)); ++w)
      sum += A(taps[w]) * A(a.x.template load<1>(b, t - w, c)[0]);
    a.y[b * s.L * s.C + t * a.y_row + c] = T(sum);
  }
}

/// Calls body.template operator()<N, K>() with the size of packs and the longest filter of the kernels for W <= K.
/// False where filters are longer than those.
template <class T, class Body>
bool with_short_filter(int64_t W, bool has_packs, const Body& body) {
  constexpr int N = kChannels<T>;
  if (W > 8) return false;
  if (W > 4) {
    has_packs ? body.template operator()<N, 8>() : body.template operator()<1, 8>();
  } else {
    has_packs ? body.template operator()<N, 4>() : body.template operator()<1, 4>();
  }
  return true;
}

template <class T>
void filter(Cuda cuda, const Filter<T>& a) {
  constexpr int most = kChannels<T>;
  const ConvShape& s = a.x.shape;
  const bool has_packs = a.x.template has_packs<most>() && cuda::aligned<most>(a.bias, a.y);
  const auto launch = [&]<int N, int K>() {
    const int64_t threads = s.B * ((s.L + kRun - 1) / kRun) * (s.C / N);
    cuda::launch_elements(cuda, threads, short_filter<N, K, T>, a);
  };
  if (!with_short_filter<T>(s.W, has_packs, launch)) cuda::launch_elements(cuda, s.B * s.L * s.C, long_filter<T>, a);
}

// Row r of the initial state meets token t under tap W - 1 + t - r.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) initial_gradient(Conv1dCausalBwd<T> a) {
  using A = acc_t<T>;
  const ConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * (s.W - 1) * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, row = i / s.C % (s.W - 1), b = i / s.C / (s.W - 1);
    const T *const taps = taps_of(s, a.weight, c), *const dy = a.dy + b * a.dy_batch + c;
    A sum(0);
    for (int64_t t = 0; t <= min(row, s.L - 1); ++t) sum += A(taps[s.W - 1 + t - row]) * A(dy[t * a.dy_row]);
    a.dinitial[i] = T(sum);
  }
}

// What one stretch of time [begin, end) of sequence b adds to the gradient of tap w of channel c; w = W: of the bias.
template <class T>
__device__ acc_t<T> stretch_sum(const Conv1dCausalBwd<T>& a, int64_t b, int64_t begin, int64_t end, int64_t w,
                                int64_t c) {
  using A = acc_t<T>;
  const ConvShape& s = a.shape;
  const T *const dy = a.dy + b * a.dy_batch + c, *const x = a.x + b * a.x_batch + c;
  A sum(0);
  if (w == s.W) {
    for (int64_t t = begin; t < end; ++t) sum += A(dy[t * a.dy_row]);
    return sum;
  }
  if (a.initial)
    for (int64_t t = begin; t < min(end, w); ++t)
      sum += A(dy[t * a.dy_row]) * A(a.initial[(b * (s.W - 1) + s.W - 1 + t - w) * s.C + c]);
  for (int64_t t = max(begin, w); t < end; ++t) sum += A(dy[t * a.dy_row]) * A(x[(t - w) * a.x_row]);
  return sum;
}

// The sums of the filter's and the bias' gradients over each piece of the work, as [pieces, W + 1, C], are made by one
// of the next two kernels.

constexpr int kWarps = ConvShape::kRowsPerUnit / kRun;  // of a block: a run of each unit's tokens for each

// W <= K: a lane per pack of channels; a block goes through the stretches of time of a piece.
template <int N, int K, class T>
__global__ void __launch_bounds__(cuda::kWarp* kWarps)
    short_piece_sums(Sequences<T> x, Sequences<T> dy, int64_t pieces, int64_t units, acc_t<T>* sums) {
  using A = acc_t<T>;
  __shared__ cuda::Pack<A, N> shared[kWarps][cuda::kWarp];
  const ConvShape& s = x.shape;
  const int64_t stretches = (s.L + s.kRowsPerUnit - 1) / s.kRowsPerUnit, piece = blockIdx.y;
  const int64_t c = (int64_t{blockIdx.x} * cuda::kWarp + threadIdx.x) * N;
  cuda::Pack<A, N> sum[K + 1];
#pragma unroll
  for (int w = 0; w <= K; ++w) sum[w] = cuda::repeat<N>(A(0));
  for (int64_t unit = piece * units / pieces; c < s.C && unit < (piece + 1) * units / pieces; ++unit) {
    const int64_t begin = unit % stretches * s.kRowsPerUnit + threadIdx.y * kRun, end = min(s.L, begin + kRun);
    if (begin >= end) continue;
    Window<T, N, K> window(x, unit / stretches, begin, c);
    for (int64_t t = begin; t < end; t += kStep, window.advance()) {
      window.read(t, end);
      cuda::Pack<T, N> cotangents[kStep];
#pragma unroll
      for (int u = 0; u < kStep; ++u)
        if (t + u < end) cotangents[u] = dy.template load<N>(unit / stretches, t + u, c);
#pragma unroll
      for (int u = 0; u < kStep; ++u) {
        if (t + u >= end) break;
        for (int n = 0; n < N; ++n) {
          const A g(cotangents[u][n]);
#pragma unroll
          for (int w = 0; w < K; ++w)
            if (w < s.W) sum[w][n] += g * A(window.row(u, w)[n]);
          sum[K][n] += g;
        }
      }
    }
  }
#pragma unroll
  for (int w = 0; w <= K; ++w) {
    if (w >= s.W && w < K) continue;
    shared[threadIdx.y][threadIdx.x] = sum[w];
    __syncthreads();
    if (threadIdx.y == 0 && c < s.C) {
      for (int warp = 1; warp < kWarps; ++warp)
        for (int n = 0; n < N; ++n) sum[w][n] += shared[warp][threadIdx.x][n];
      cuda::store(sums + (piece * (s.W + 1) + (w < K ? w : s.W)) * s.C + c, sum[w]);
    }
    __syncthreads();  // before the next sums overwrite these
  }
}

// Any W: a thread per sum.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) long_piece_sums(Conv1dCausalBwd<T> a, int64_t pieces, int64_t units) {
  const ConvShape& s = a.shape;
  const int64_t size = (s.W + 1) * s.C;
  const int64_t stretches = (s.L + s.kRowsPerUnit - 1) / s.kRowsPerUnit;
  for (int64_t i = cuda::first_index(); i < pieces * size; i += cuda::index_step()) {
    const int64_t c = i % s.C, w = i / s.C % (s.W + 1), piece = i / size;
    acc_t<T> sum(0);
    for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit) {
      const int64_t begin = unit % stretches * s.kRowsPerUnit;
      sum += stretch_sum(a, unit / stretches, begin, min(s.L, begin + s.kRowsPerUnit), w, c);
    }
    a.workspace[i] = sum;
  }
}

template <class T>
void piece_sums(Cuda cuda, const Conv1dCausalBwd<T>& a) {
  constexpr int most = kChannels<T>;
  const ConvShape& s = a.shape;
  const int64_t pieces = s.pieces();
  if (pieces == 0 || s.C == 0) return;
  const Sequences<T> x{s, a.x, a.x_batch, a.x_row, a.initial}, dy{s, a.dy, a.dy_batch, a.dy_row};
  const bool has_packs =
      x.template has_packs<most>() && dy.template has_packs<most>() && cuda::aligned<most>(a.workspace);
  const auto launch = [&]<int N, int K>() {
    const dim3 grid(static_cast<unsigned>((s.C / N + cuda::kWarp - 1) / cuda::kWarp), static_cast<unsigned>(pieces));
    cuda::launch(cuda, grid, dim3(cuda::kWarp, kWarps), short_piece_sums<N, K, T>, x, dy, pieces, s.units(),
                 a.workspace);
  };
  if (!with_short_filter<T>(s.W, has_packs, launch))
    cuda::launch_elements(cuda, pieces * (s.W + 1) * s.C, long_piece_sums<T>, a, pieces, s.units());
}

/// total[k], for tap k % W of filter k / W: the sum over the pieces and over the `shared` channels of the filter. A
/// block each.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads)
    add_pieces(const acc_t<T>* sums, int64_t pieces, int64_t piece_size, int64_t C, int64_t W, int64_t shared,
               int64_t count, T* total) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t first = k % W * C + k / W * shared;
    acc_t<T> sum(0);
    for (int64_t i = threadIdx.x; i < pieces * shared; i += cuda::kThreads)
      sum += sums[i / shared * piece_size + first + i % shared];
    sum = cuda::block_reduce<cuda::Sum>(sum);
    if (threadIdx.x == 0) total[k] = T(sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const Conv1dCausalFwd<T>& a) {
  filter(cuda, Filter<T>{{a.shape, a.x, a.x_batch, a.x_row, a.initial}, a.weight, a.bias, a.y, a.shape.C});
}

// dx[t] = sum over w of taps[w] dy[t + w]: the filter itself, backwards in time.
template <class T>
void run(Cuda cuda, const Conv1dCausalBwd<T>& a) {
  const ConvShape& s = a.shape;
  if (a.dx && s.L > 0) {
    const Sequences<T> dy{s, a.dy + (s.L - 1) * a.dy_row, a.dy_batch, -a.dy_row};
    filter(cuda, Filter<T>{dy, a.weight, nullptr, a.dx + (s.L - 1) * s.C, -s.C});
  }
  if (a.dinitial) cuda::launch_elements(cuda, s.B * (s.W - 1) * s.C, initial_gradient<T>, a);
  if (!a.dweight && !a.dbias) return;
  piece_sums(cuda, a);
  const auto add = [&](const acc_t<T>* sums, int64_t W, int64_t filters, T* total) {
    const int64_t blocks = std::min<int64_t>(filters * W, int64_t{1} << 20);
    if (blocks == 0) return;
    cuda::launch(cuda, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads), add_pieces<T>, sums, s.pieces(),
                 (s.W + 1) * s.C, s.C, W, s.C / filters, filters * W, total);
  };
  if (a.dweight) add(a.workspace, s.W, s.filters, a.dweight);
  if (a.dbias) add(a.workspace + s.W * s.C, 1, s.C, a.dbias);
}

template void run(Cuda, const Conv1dCausalFwd<float>&);
template void run(Cuda, const Conv1dCausalFwd<double>&);
template void run(Cuda, const Conv1dCausalFwd<bf16>&);
template void run(Cuda, const Conv1dCausalBwd<float>&);
template void run(Cuda, const Conv1dCausalBwd<double>&);
template void run(Cuda, const Conv1dCausalBwd<bf16>&);

}  // namespace margay::kernels
