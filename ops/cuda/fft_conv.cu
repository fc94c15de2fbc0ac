#include "ops/fft_conv.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

namespace margay::kernels {
namespace {

// No transforms yet: the sums as they stand, O(B C L K). A thread has one channel, neighbouring threads have
// neighbouring ones, and kRows tokens, whose window of inputs moves through registers: a load of an input and a tap for
// kRows products.
constexpr int kRows = 8;

/// sums[r] = sum over w < taps of filter[w tap_stride] x[(r - w) stride] for the rows r < kRows after `before` others,
/// of which `rows` exist.
template <class A, class T>
__device__ void filter_rows(const T* filter, int64_t tap_stride, int64_t taps, const T* x, int64_t stride,
                            int64_t before, int64_t rows, A (&sums)[kRows]) {
  A window[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = 0;
    window[r] = r < rows ? A(x[r * stride]) : A(0);
  }
  const int64_t end = min(taps, before + kRows);
  for (int64_t w = 0; w < end; ++w) {
    const A tap(filter[w * tap_stride]);
    for (int r = 0; r < kRows; ++r) sums[r] += tap * window[r];
    for (int r = kRows - 1; r > 0; --r) window[r] = window[r - 1];
    window[0] = w < before ? A(x[-(w + 1) * stride]) : A(0);
  }
}

// y[t] = D u[t] + sum over w of kernel[w] u[t - w].
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(FftConvFwd<T> a, int64_t blocks) {
  using A = acc_t<T>;
  const FftConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * blocks * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, t = i / s.C % blocks * kRows, b = i / s.C / blocks;
    const T* const u = a.u + b * a.u_batch + t * a.u_row + c;
    const int64_t rows = min(int64_t{kRows}, s.L - t);
    A sums[kRows];
    filter_rows(a.kernel + c * a.kernel_channel, a.kernel_tap, s.K, u, a.u_row, t, rows, sums);
    const A skip = a.D ? A(a.D[c]) : A(0);
    for (int r = 0; r < kRows; ++r)
      if (r < rows) a.y[((b * s.L + t + r) * s.C) + c] = T(sums[r] + skip * A(u[r * a.u_row]));
  }
}

// du[t] = D dy[t] + sum over w of kernel[w] dy[t + w]: the filter itself, backwards in time.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) input_gradient(FftConvBwd<T> a, int64_t blocks) {
  using A = acc_t<T>;
  const FftConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * blocks * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, from_end = i / s.C % blocks * kRows, b = i / s.C / blocks, t = s.L - 1 - from_end;
    const T* const dy = a.dy + b * a.dy_batch + t * a.dy_row + c;
    const int64_t rows = min(int64_t{kRows}, s.L - from_end);
    A sums[kRows];
    filter_rows(a.kernel + c * a.kernel_channel, a.kernel_tap, s.K, dy, -a.dy_row, from_end, rows, sums);
    const A skip = a.D ? A(a.D[c]) : A(0);
    for (int r = 0; r < kRows; ++r)
      if (r < rows) a.du[(b * s.L + t - r) * s.C + c] = T(sums[r] + skip * A(dy[-r * a.dy_row]));
  }
}

// dkernel[w] = sum over sequences and t >= w of dy[t] u[t - w]: a thread has kRows neighbouring taps of a channel.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) kernel_gradient(FftConvBwd<T> a, int64_t blocks) {
  using A = acc_t<T>;
  const FftConvShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < blocks * s.C; i += cuda::index_step()) {
    const int64_t c = i % s.C, first = i / s.C * kRows;
    A sums[kRows] = {};
    for (int64_t b = 0; b < s.B; ++b) {
      const T *const u = a.u + b * a.u_batch + c, *const dy = a.dy + b * a.dy_batch + c;
      A window[kRows] = {};  // u[t - first - r]
      for (int64_t t = first; t < s.L; ++t) {
        for (int r = kRows - 1; r > 0; --r) window[r] = window[r - 1];
        window[0] = A(u[(t - first) * a.u_row]);
        const A cotangent(dy[t * a.dy_row]);
        for (int r = 0; r < kRows; ++r) sums[r] += cotangent * window[r];
      }
    }
    for (int r = 0; r < kRows; ++r)
      if (first + r < s.K) a.dkernel[c * a.dkernel_channel + (first + r) * a.dkernel_tap] = T(sums[r]);
  }
}

// dD = sum over sequences and tokens of dy u: a block per channel.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) skip_gradient(FftConvBwd<T> a) {
  using A = acc_t<T>;
  const FftConvShape& s = a.shape;
  for (int64_t c = blockIdx.x; c < s.C; c += gridDim.x) {
    A sum(0);
    for (int64_t i = threadIdx.x; i < s.B * s.L; i += cuda::kThreads) {
      const int64_t b = i / s.L, t = i % s.L;
      sum += A(a.dy[b * a.dy_batch + t * a.dy_row + c]) * A(a.u[b * a.u_batch + t * a.u_row + c]);
    }
    sum = cuda::block_reduce<cuda::Sum>(sum);
    if (threadIdx.x == 0) a.dD[c] = T(sum);
  }
}

int64_t blocks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

}  // namespace

template <class T>
void run(Cuda cuda, const FftConvFwd<T>& a) {
  const int64_t blocks = blocks_of(a.shape.L);
  cuda::launch_elements(cuda, a.shape.B * blocks * a.shape.C, forward<T>, a, blocks);
}

template <class T>
void run(Cuda cuda, const FftConvBwd<T>& a) {
  const FftConvShape& s = a.shape;
  if (a.du) cuda::launch_elements(cuda, s.B * blocks_of(s.L) * s.C, input_gradient<T>, a, blocks_of(s.L));
  if (a.dkernel) cuda::launch_elements(cuda, blocks_of(s.K) * s.C, kernel_gradient<T>, a, blocks_of(s.K));
  const auto channels = static_cast<unsigned>(std::min(s.C, int64_t{1} << 20));
  if (a.dD && channels > 0) cuda::launch(cuda, dim3(channels), dim3(cuda::kThreads), skip_gradient<T>, a);
}

template void run(Cuda, const FftConvFwd<float>&);
template void run(Cuda, const FftConvFwd<double>&);
template void run(Cuda, const FftConvFwd<bf16>&);
template void run(Cuda, const FftConvBwd<float>&);
template void run(Cuda, const FftConvBwd<double>&);
template void run(Cuda, const FftConvBwd<bf16>&);

}  // namespace margay::kernels
