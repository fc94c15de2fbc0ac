#include "ops/glu.h"

#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

template <class T>
using Packs = cuda::Packs<cuda::kPackOf<T>>;

/// Rows of y, and halves of the rows of x.
cuda::Nest<2> nest_of(int64_t rows, int64_t m) {
  return cuda::Nest<2>(StridedLoop<2>({rows, m}, {Shape{m, 1}, Shape{2 * m, 1}}));
}

template <class T, class Functor>
__global__ void forward(Packs<T> packs, cuda::Nest<2> nest, GluFwd<T> a, Functor functor) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[2];
    nest.offsets(i, at);
    const auto value = [&](T first, T second) { return T(functor.value(A(first), A(second))); };
    const T* const x = a.x + at[1];
    cuda::store(a.y + at[0], cuda::map(value, cuda::load<N>(x), cuda::load<N>(x + a.m)));
  });
}

template <class T, class Functor>
__global__ void backward(Packs<T> packs, cuda::Nest<2> nest, GluBwd<T> a, Functor functor) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[2];
    nest.offsets(i, at);
    const T* const x = a.x + at[1];
    const auto first = cuda::load<N>(x), second = cuda::load<N>(x + a.m), dy = cuda::load<N>(a.dy + at[0]);
    const auto to_first = [&](T x, T y, T g) { return T(A(g) * functor.da(A(x), A(y))); };
    const auto to_second = [&](T x, T y, T g) { return T(A(g) * functor.db(A(x), A(y))); };
    cuda::store(a.dx + at[1], cuda::map(to_first, first, second, dy));
    cuda::store(a.dx + at[1] + a.m, cuda::map(to_second, first, second, dy));
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const GluFwd<T>& a) {
  const auto nest = nest_of(a.rows, a.m);
  const Packs<T> packs(nest, a.y, a.x, a.x + a.m);
  std::visit([&]<class F>(const F& f) { cuda::launch_packs(cuda, packs, forward<T, F>, nest, a, f); }, a.functor);
}

template <class T>
void run(Cuda cuda, const GluBwd<T>& a) {
  const auto nest = nest_of(a.rows, a.m);
  const Packs<T> packs(nest, a.dy, a.x, a.x + a.m, a.dx, a.dx + a.m);
  std::visit([&]<class F>(const F& f) { cuda::launch_packs(cuda, packs, backward<T, F>, nest, a, f); }, a.functor);
}

template void run(Cuda, const GluFwd<float>&);
template void run(Cuda, const GluFwd<double>&);
template void run(Cuda, const GluFwd<bf16>&);
template void run(Cuda, const GluBwd<float>&);
template void run(Cuda, const GluBwd<double>&);
template void run(Cuda, const GluBwd<bf16>&);

}  // namespace margay::kernels
