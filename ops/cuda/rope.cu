#include "ops/rope.h"

#include "engine/cuda/elements.cuh"
#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

/// Rows of the table, and the first dims of every pair of y and x; heads of a token are neighbours.
template <class T>
cuda::Nest<3> nest_of(const Rope<T>& a) {
  const auto strides = [](const HeadStrides& s) { return Shape{s.batch, s.row, s.head, 1}; };
  const Shape shape{a.B, a.L, a.H, a.pairs};
  return cuda::Nest<3>(StridedLoop<3>(shape, {Shape{0, a.pairs, 0, 1}, strides(a.y_strides), strides(a.x_strides)}));
}

template <class T>
__global__ void rotate(cuda::Packs<cuda::kPackOf<T>> packs, cuda::Nest<3> nest, Rope<T> a) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[3];
    nest.offsets(i, at);
    const auto cos = cuda::load<N>(a.cos + at[0]), sin = cuda::load<N>(a.sin + at[0]);
    const auto low = cuda::load<N>(a.x + at[2]), high = cuda::load<N>(a.x + at[2] + a.pairs);
    cuda::Pack<T, N> new_low, new_high;
    for (int k = 0; k < N; ++k) {
      const A c(cos[k]), s = a.back ? -A(sin[k]) : A(sin[k]), x(low[k]), y(high[k]);
      new_low[k] = T(x * c - y * s);
      new_high[k] = T(y * c + x * s);
    }
    cuda::store(a.y + at[1], new_low);
    cuda::store(a.y + at[1] + a.pairs, new_high);
  });
}

/// The dims of x or y that are not rotated.
template <class T>
Region rest_of(const Rope<T>& a, const T* data, const HeadStrides& strides) {
  const Shape shape{a.B, a.H, a.L, a.dh - 2 * a.pairs};
  return {const_cast<T*>(data) + 2 * a.pairs, dtype_of<T>, shape, {strides.batch, strides.head, strides.row, 1}};
}

}  // namespace

template <class T>
void run(Cuda cuda, const Rope<T>& a) {
  constexpr int N = cuda::kPackOf<T>;
  const auto nest = nest_of(a);
  const bool fits = a.pairs % N == 0 && cuda::Packs<N>::fit(nest, a.cos, a.y, a.x) && cuda::aligned<N>(a.sin);
  cuda::launch_packs(cuda, cuda::Packs<N>(nest.count, fits), rotate<T>, nest, a);
  if (a.dh > 2 * a.pairs) cuda::copy(cuda, rest_of(a, a.y, a.y_strides), rest_of(a, a.x, a.x_strides));
}

template void run(Cuda, const Rope<float>&);
template void run(Cuda, const Rope<double>&);
template void run(Cuda, const Rope<bf16>&);

}  // namespace margay::kernels
