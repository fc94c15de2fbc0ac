#include "ops/conv1d_causal.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

namespace margay::kernels {
namespace {

/// The taps of channel c.
template <class T>
__device__ const T* taps_of(const ConvShape& s, const T* weight, int64_t c) {
  return weight + c / (s.C / s.filters) * s.W;
}

// A thread per element of y; neighbouring threads take neighbouring channels. Sums go in the order of the taps, so that
// a sequence fed in parts gives the bits of the whole.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(Conv1dCausalFwd<T> a) {
  using A = acc_t<T>;
  const ConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * s.L * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, t = i / s.C % s.L, b = i / s.C / s.L;
    const T *const taps = taps_of(s, a.weight, c), *const x = a.x + b * a.x_batch + t * a.x_row + c;
    const int64_t inside = min(s.W, t + 1);
    A sum = a.bias ? A(a.bias[c]) : A(0);
    for (int64_t w = 0; w < inside; ++w) sum += A(taps[w]) * A(x[-w * a.x_row]);
    if (a.initial)
      for (int64_t w = inside; w < s.W; ++w)
        sum += A(taps[w]) * A(a.initial[(b * (s.W - 1) + s.W - 1 + t - w) * s.C + c]);
    a.y[i] = T(sum);
  }
}

// dx[t] = sum over w of taps[w] dy[t + w]; a thread per element.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) input_gradient(Conv1dCausalBwd<T> a) {
  using A = acc_t<T>;
  const ConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * s.L * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, t = i / s.C % s.L, b = i / s.C / s.L;
    const T *const taps = taps_of(s, a.weight, c), *const dy = a.dy + b * a.dy_batch + t * a.dy_row + c;
    A sum(0);
    for (int64_t w = 0; w < min(s.W, s.L - t); ++w) sum += A(taps[w]) * A(dy[w * a.dy_row]);
    a.dx[i] = T(sum);
  }
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

// Sums of the filter's and the bias' gradients over each piece of the work, as [pieces, W + 1, C]: a thread per sum.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) piece_sums(Conv1dCausalBwd<T> a, int64_t pieces, int64_t units) {
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

// A block per tap: the sum over the pieces and over the channels that share the filter.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) weight_gradient(Conv1dCausalBwd<T> a, int64_t pieces) {
  const ConvShape& s = a.shape;
  const int64_t shared = s.C / s.filters, size = (s.W + 1) * s.C;
  for (int64_t tap = blockIdx.x; tap < s.filters * s.W; tap += gridDim.x) {
    const int64_t first = tap % s.W * s.C + tap / s.W * shared;
    acc_t<T> sum(0);
    for (int64_t i = threadIdx.x; i < pieces * shared; i += cuda::kThreads)
      sum += a.workspace[i / shared * size + first + i % shared];
    sum = cuda::block_reduce<cuda::Sum>(sum);
    if (threadIdx.x == 0) a.dweight[tap] = T(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) bias_gradient(Conv1dCausalBwd<T> a, int64_t pieces) {
  const ConvShape& s = a.shape;
  for (int64_t c = cuda::first_index(); c < s.C; c += cuda::index_step()) {
    acc_t<T> sum(0);
    for (int64_t piece = 0; piece < pieces; ++piece) sum += a.workspace[(piece * (s.W + 1) + s.W) * s.C + c];
    a.dbias[c] = T(sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const Conv1dCausalFwd<T>& a) {
  cuda::launch_elements(cuda, a.shape.B * a.shape.L * a.shape.C, forward<T>, a);
}

template <class T>
void run(Cuda cuda, const Conv1dCausalBwd<T>& a) {
  const ConvShape& s = a.shape;
  const int64_t pieces = s.pieces();
  if (a.dx) cuda::launch_elements(cuda, s.B * s.L * s.C, input_gradient<T>, a);
  if (a.dinitial) cuda::launch_elements(cuda, s.B * (s.W - 1) * s.C, initial_gradient<T>, a);
  if (a.dweight || a.dbias) cuda::launch_elements(cuda, pieces * (s.W + 1) * s.C, piece_sums<T>, a, pieces, s.units());
  if (a.dweight && s.filters > 0) {
    const int64_t blocks = std::min<int64_t>(s.filters * s.W, int64_t{1} << 20);
    cuda::launch(cuda, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads), weight_gradient<T>, a, pieces);
  }
  if (a.dbias) cuda::launch_elements(cuda, s.C, bias_gradient<T>, a, pieces);
}

template void run(Cuda, const Conv1dCausalFwd<float>&);
template void run(Cuda, const Conv1dCausalFwd<double>&);
template void run(Cuda, const Conv1dCausalFwd<bf16>&);
template void run(Cuda, const Conv1dCausalBwd<float>&);
template void run(Cuda, const Conv1dCausalBwd<double>&);
template void run(Cuda, const Conv1dCausalBwd<bf16>&);

}  // namespace margay::kernels
