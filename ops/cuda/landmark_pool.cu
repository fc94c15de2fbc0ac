#include "ops/landmark_pool.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

namespace margay::kernels {
namespace {

template <class T>
__device__ T* head_of(T* data, const HeadStrides& strides, const LandmarkPoolShape& s, int64_t head) {
  return data + head / s.H * strides.batch + head % s.H * strides.head;
}
template <class T>
__device__ const T* taps_of(const LandmarkPoolShape& s, const T* weight, int64_t head) {
  return weight + (s.filters == 1 ? 0 : head % s.H * s.W);
}

// A thread per element of y; the sum runs in the order of the tokens.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(LandmarkPoolFwd<T> a, int64_t M) {
  using A = acc_t<T>;
  const LandmarkPoolShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * s.H * M * s.dh; i += cuda::index_step()) {
    const int64_t d = i % s.dh, m = i / s.dh % M, head = i / s.dh / M;
    const T* const k = head_of(a.k, a.k_strides, s, head) + m * s.W * a.k_strides.row + d;
    const T* const taps = taps_of(s, a.weight, head);
    A sum(0);
    for (int64_t j = 0; j < s.W; ++j) sum += A(taps[s.W - 1 - j]) * A(k[j * a.k_strides.row]);
    a.y[i] = T(sum);
  }
}

// dk[m W + j] = F[W - 1 - j] dy[m], 0 behind the last complete block; a thread per element.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) key_gradient(LandmarkPoolBwd<T> a, int64_t M) {
  using A = acc_t<T>;
  const LandmarkPoolShape& s = a.shape;
  for (int64_t i = cuda::first_index(); i < s.B * s.H * s.L * s.dh; i += cuda::index_step()) {
    const int64_t d = i % s.dh, t = i / s.dh % s.L, head = i / s.dh / s.L, m = t / s.W;
    A dk(0);
    if (m < M)
      dk = A(taps_of(s, a.weight, head)[s.W - 1 - t % s.W]) *
           A(head_of(a.dy, a.dy_strides, s, head)[m * a.dy_strides.row + d]);
    head_of(a.dk, a.dk_strides, s, head)[t * a.dk_strides.row + d] = T(dk);
  }
}

// workspace[piece, filter, w] = the sum of dy[m] . k[m W + W - 1 - w] over a piece's landmarks; a warp per sum.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) piece_sums(LandmarkPoolBwd<T> a, int64_t M, int64_t pieces) {
  using A = acc_t<T>;
  const LandmarkPoolShape& s = a.shape;
  const int64_t units = s.B * s.H * M, size = s.filters * s.W;
  const int64_t lane = threadIdx.x % cuda::kWarp;
  for (int64_t at = cuda::first_index() / cuda::kWarp; at < pieces * size; at += cuda::index_step() / cuda::kWarp) {
    const int64_t piece = at / size, filter = at % size / s.W, j = s.W - 1 - at % s.W;
    const int64_t begin = piece * units / pieces, end = (piece + 1) * units / pieces;
    A sum(0);
    for (int64_t i = begin * s.dh + lane; i < end * s.dh; i += cuda::kWarp) {
      const int64_t d = i % s.dh, m = i / s.dh % M, head = i / s.dh / M;
      if (s.filters > 1 && head % s.H != filter) continue;
      sum += A(head_of(a.dy, a.dy_strides, s, head)[m * a.dy_strides.row + d]) *
             A(head_of(a.k, a.k_strides, s, head)[(m * s.W + j) * a.k_strides.row + d]);
    }
    sum = cuda::warp_sum(sum);
    if (lane == 0) a.workspace[at] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) weight_gradient(LandmarkPoolBwd<T> a, int64_t pieces) {
  const int64_t size = a.shape.filters * a.shape.W;
  for (int64_t i = cuda::first_index(); i < size; i += cuda::index_step()) {
    acc_t<T> sum(0);
    for (int64_t piece = 0; piece < pieces; ++piece) sum += a.workspace[piece * size + i];
    a.dweight[i] = T(sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const LandmarkPoolFwd<T>& a) {
  cuda::launch_elements(cuda, a.shape.units() * a.shape.dh, forward<T>, a, a.shape.M());
}

template <class T>
void run(Cuda cuda, const LandmarkPoolBwd<T>& a) {
  const LandmarkPoolShape& s = a.shape;
  if (a.dk) cuda::launch_elements(cuda, s.B * s.H * s.L * s.dh, key_gradient<T>, a, s.M());
  if (!a.dweight) return;
  const int64_t pieces = s.pieces();
  cuda::launch_elements(cuda, pieces * s.filter_size() * cuda::kWarp, piece_sums<T>, a, s.M(), pieces);
  cuda::launch_elements(cuda, s.filter_size(), weight_gradient<T>, a, pieces);
}

template void run(Cuda, const LandmarkPoolFwd<float>&);
template void run(Cuda, const LandmarkPoolFwd<double>&);
template void run(Cuda, const LandmarkPoolFwd<bf16>&);
template void run(Cuda, const LandmarkPoolBwd<float>&);
template void run(Cuda, const LandmarkPoolBwd<double>&);
template void run(Cuda, const LandmarkPoolBwd<bf16>&);

}  // namespace margay::kernels
