#include "ops/glu.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

template <class T, class Functor>
__global__ void forward(const T* x, T* y, int64_t rows, int64_t m, Functor functor) {
  using A = acc_t<T>;
  for (int64_t i = cuda::first_index(); i < rows * m; i += cuda::index_step()) {
    const int64_t at = i + i / m * m;  // of a, m in front of b
    y[i] = T(functor.value(A(x[at]), A(x[at + m])));
  }
}

template <class T, class Functor>
__global__ void backward(const T* x, const T* dy, T* dx, int64_t rows, int64_t m, Functor functor) {
  using A = acc_t<T>;
  for (int64_t i = cuda::first_index(); i < rows * m; i += cuda::index_step()) {
    const int64_t at = i + i / m * m;
    const A first(x[at]), second(x[at + m]), cotangent(dy[i]);
    dx[at] = T(cotangent * functor.da(first, second));
    dx[at + m] = T(cotangent * functor.db(first, second));
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const GluFwd<T>& a) {
  std::visit(
      [&]<class F>(const F& f) { cuda::launch_elements(cuda, a.rows * a.m, forward<T, F>, a.x, a.y, a.rows, a.m, f); },
      a.functor);
}

template <class T>
void run(Cuda cuda, const GluBwd<T>& a) {
  std::visit(
      [&]<class F>(const F& f) {
        cuda::launch_elements(cuda, a.rows * a.m, backward<T, F>, a.x, a.dy, a.dx, a.rows, a.m, f);
      },
      a.functor);
}

template void run(Cuda, const GluFwd<float>&);
template void run(Cuda, const GluFwd<double>&);
template void run(Cuda, const GluFwd<bf16>&);
template void run(Cuda, const GluBwd<float>&);
template void run(Cuda, const GluBwd<double>&);
template void run(Cuda, const GluBwd<bf16>&);

}  // namespace margay::kernels
