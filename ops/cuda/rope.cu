#include "ops/rope.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

// A thread per pair of dims that is rotated, or per dim that is copied; heads of a token are neighbours.
template <class T>
__global__ void rotate(Rope<T> a) {
  using A = acc_t<T>;
  const int64_t width = a.dh - a.pairs, count = a.B * a.L * a.H * width;
  for (int64_t n = cuda::first_index(); n < count; n += cuda::index_step()) {
    const int64_t i = n % width, row = n / width, h = row % a.H, token = row / a.H, t = token % a.L, b = token / a.L;
    const T* const x = a.x + b * a.x_strides.batch + h * a.x_strides.head + t * a.x_strides.row;
    T* const y = a.y + b * a.y_strides.batch + h * a.y_strides.head + t * a.y_strides.row;
    if (i >= a.pairs) {
      y[a.pairs + i] = x[a.pairs + i];
      continue;
    }
    const A cos(a.cos[t * a.pairs + i]), angle_sin(a.sin[t * a.pairs + i]), sin = a.back ? -angle_sin : angle_sin;
    const A low(x[i]), high(x[a.pairs + i]);
    y[i] = T(low * cos - high * sin);
    y[a.pairs + i] = T(high * cos + low * sin);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const Rope<T>& a) {
  cuda::launch_elements(cuda, a.B * a.L * a.H * (a.dh - a.pairs), rotate<T>, a);
}

template void run(Cuda, const Rope<float>&);
template void run(Cuda, const Rope<double>&);
template void run(Cuda, const Rope<bf16>&);

}  // namespace margay::kernels
