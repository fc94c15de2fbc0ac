#include "ops/unary.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

template <class T, class Functor>
__global__ void forward(const T* x, T* y, int64_t n, Functor functor) {
  for (int64_t i = cuda::first_index(); i < n; i += cuda::index_step()) y[i] = T(functor.value(acc_t<T>(x[i])));
}

template <class T, class Functor>
__global__ void backward(UnaryBwd<T> a, Functor functor) {
  using A = acc_t<T>;
  for (int64_t i = cuda::first_index(); i < a.n; i += cuda::index_step()) {
    A saved(0);
    if constexpr (Functor::saves != functors::Saves::nothing) saved = A(a.saved[i]);
    A dx = A(a.dy[i]) * functor.derivative(saved, saved);
    if (a.accumulate) dx += A(a.dx[i]);
    a.dx[i] = T(dx);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const UnaryFwd<T>& a) {
  std::visit([&]<class F>(const F& f) { cuda::launch_elements(cuda, a.n, forward<T, F>, a.x, a.y, a.n, f); },
             a.functor);
}

template <class T>
void run(Cuda cuda, const UnaryBwd<T>& a) {
  std::visit([&]<class F>(const F& f) { cuda::launch_elements(cuda, a.n, backward<T, F>, a, f); }, a.functor);
}

template void run(Cuda, const UnaryFwd<float>&);
template void run(Cuda, const UnaryFwd<double>&);
template void run(Cuda, const UnaryFwd<bf16>&);
template void run(Cuda, const UnaryBwd<float>&);
template void run(Cuda, const UnaryBwd<double>&);
template void run(Cuda, const UnaryBwd<bf16>&);

}  // namespace margay::kernels
