#include "ops/head_outer.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

// A thread per element of y.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) outer(HeadOuter<T> args) {
  using A = acc_t<T>;
  const int64_t e = args.shape.head_dim, size = args.shape.heads * e * e;
  for (int64_t at = cuda::first_index(); at < args.shape.rows * size; at += cuda::index_step()) {
    const int64_t row = at / size, h = at % size / (e * e), i = at / e % e, j = at % e;
    args.y[at] = T(A(args.a[row * args.a_row + h * e + i]) * A(args.b[row * args.b_row + h * e + j]));
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) product(HeadProduct<T> args) {
  using A = acc_t<T>;
  const int64_t e = args.shape.head_dim, channels = args.shape.heads * e;
  const int64_t along_i = args.transposed ? 1 : e, along_j = args.transposed ? e : 1;
  for (int64_t at = cuda::first_index(); at < args.shape.rows * channels; at += cuda::index_step()) {
    const int64_t row = at / channels, head = at % channels / e, j = at % e;
    const T *const a = args.a + row * args.a_row + head * e, *const m = args.m + at / e * e * e + j * along_j;
    A sum(0);
    for (int64_t i = 0; i < e; ++i) sum += A(a[i]) * A(m[i * along_i]);
    args.y[at] = T(sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const HeadOuter<T>& args) {
  const HeadShape& s = args.shape;
  cuda::launch_elements(cuda, s.rows * s.channels() * s.head_dim, outer<T>, args);
}

template <class T>
void run(Cuda cuda, const HeadProduct<T>& args) {
  cuda::launch_elements(cuda, args.shape.rows * args.shape.channels(), product<T>, args);
}

template void run(Cuda, const HeadOuter<float>&);
template void run(Cuda, const HeadOuter<double>&);
template void run(Cuda, const HeadOuter<bf16>&);
template void run(Cuda, const HeadProduct<float>&);
template void run(Cuda, const HeadProduct<double>&);
template void run(Cuda, const HeadProduct<bf16>&);

}  // namespace margay::kernels
