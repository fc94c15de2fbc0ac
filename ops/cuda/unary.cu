#include "ops/unary.h"

#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

template <class T>
using Packs = cuda::Packs<cuda::kPackOf<T>>;

template <class T, class Functor>
__global__ void forward(Packs<T> packs, const T* x, T* y, Functor functor) {
  packs.walk([&]<int N>(int64_t i) {
    const auto value = [&](T element) { return T(functor.value(acc_t<T>(element))); };
    cuda::store(y + i, cuda::map(value, cuda::load<N>(x + i)));
  });
}

template <class T, class Functor>
__global__ void backward(Packs<T> packs, UnaryBwd<T> a, Functor functor) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    constexpr bool reads = Functor::saves != functors::Saves::nothing;
    const auto dy = cuda::load<N>(a.dy + i), saved = reads ? cuda::load<N>(a.saved + i) : dy;
    const auto before = a.accumulate ? cuda::load<N>(a.dx + i) : dy;
    const auto gradient = [&](T cotangent, T kept, T sum) {
      const A dx = A(cotangent) * functor.derivative(A(kept), A(kept));
      return T(a.accumulate ? dx + A(sum) : dx);
    };
    cuda::store(a.dx + i, cuda::map(gradient, dy, saved, before));
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const UnaryFwd<T>& a) {
  const Packs<T> packs(a.n, cuda::aligned<cuda::kPackOf<T>>(a.x, a.y));
  std::visit([&]<class F>(const F& f) { cuda::launch_packs(cuda, packs, forward<T, F>, a.x, a.y, f); }, a.functor);
}

template <class T>
void run(Cuda cuda, const UnaryBwd<T>& a) {
  const Packs<T> packs(a.n, cuda::aligned<cuda::kPackOf<T>>(a.saved, a.dy, a.dx));
  std::visit([&]<class F>(const F& f) { cuda::launch_packs(cuda, packs, backward<T, F>, a, f); }, a.functor);
}

template void run(Cuda, const UnaryFwd<float>&);
template void run(Cuda, const UnaryFwd<double>&);
template void run(Cuda, const UnaryFwd<bf16>&);
template void run(Cuda, const UnaryBwd<float>&);
template void run(Cuda, const UnaryBwd<double>&);
template void run(Cuda, const UnaryBwd<bf16>&);

}  // namespace margay::kernels
