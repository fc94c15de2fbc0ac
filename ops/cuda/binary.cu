#include "ops/binary.h"

#include "engine/cuda/nest.cuh"
#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

/// An operand on the device: elements by their offset, or one number.
template <class T>
struct Source {
  const T* data;
  acc_t<T> scalar;
  bool repeated;  // one element for a row of the nest

  Source(const BroadcastOperand<T>& operand, bool repeated)
      : data(operand.data), scalar(static_cast<acc_t<T>>(operand.scalar)), repeated(repeated) {}
  template <int N>
  __device__ cuda::Pack<acc_t<T>, N> load(int64_t offset) const {
    if (!data) return cuda::repeat<N>(scalar);
    return cuda::map([](T value) { return acc_t<T>(value); }, cuda::load<N>(data + offset, repeated));
  }
};

/// The loop over both operands and the result.
template <class T>
struct Loop {
  cuda::Nest<3> nest;
  Source<T> a, b;

  Loop(const BroadcastOperand<T>& a, const BroadcastOperand<T>& b, const Shape& shape)
      : nest(StridedLoop<3>(shape, {a.strides, b.strides, contiguous_strides(shape)})),
        a(a, nest.repeats(0)),
        b(b, nest.repeats(1)) {}
};

template <class T, class Y, class Functor>
__global__ void forward(cuda::Packs<cuda::kPackOf<T>> packs, Loop<T> loop, Y* y, Functor functor) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[3];
    loop.nest.offsets(i, at);
    const auto value = [&](A a, A b) { return Y(functor.value(a, b)); };
    cuda::store(y + at[2], cuda::map(value, loop.a.template load<N>(at[0]), loop.b.template load<N>(at[1])));
  });
}

template <int N, class T>
__device__ void put(T* gradient, const cuda::Pack<acc_t<T>, N>& values, bool accumulate) {
  using A = acc_t<T>;
  if (accumulate) {
    const auto sum = [](T before, A value) { return T(A(before) + value); };
    cuda::store(gradient, cuda::map(sum, cuda::load<N>(gradient), values));
  } else {
    cuda::store(gradient, cuda::map([](A value) { return T(value); }, values));
  }
}

template <class T, class Functor>
__global__ void backward(cuda::Packs<cuda::kPackOf<T>> packs, Loop<T> loop, const T* dy, T* da, T* db,
                         bool accumulate_a, bool accumulate_b, Functor functor) {
  using A = acc_t<T>;
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[3];
    loop.nest.offsets(i, at);
    const auto a = loop.a.template load<N>(at[0]), b = loop.b.template load<N>(at[1]);
    const auto cotangent = cuda::load<N>(dy + at[2]);
    const auto to_a = [&](A x, A y, T g) { return A(g) * functor.da(x, y); };
    const auto to_b = [&](A x, A y, T g) { return A(g) * functor.db(x, y); };
    if (da) put(da + at[2], cuda::map(to_a, a, b, cotangent), accumulate_a);
    if (db) put(db + at[2], cuda::map(to_b, a, b, cotangent), accumulate_b);
  });
}

template <class T, class Y, class Arguments>
void run_forward(Cuda cuda, const Arguments& a) {
  const Loop<T> loop(a.a, a.b, a.shape);
  const cuda::Packs<cuda::kPackOf<T>> packs(loop.nest, a.a.data, a.b.data, a.y);
  std::visit([&]<class F>(const F& f) { cuda::launch_packs(cuda, packs, forward<T, Y, F>, loop, a.y, f); }, a.functor);
}

}  // namespace

template <class T>
void run(Cuda cuda, const BinaryFwd<T>& a) {
  run_forward<T, T>(cuda, a);
}

template <class T>
void run(Cuda cuda, const CompareFwd<T>& a) {
  run_forward<T, bool>(cuda, a);
}

template <class T>
void run(Cuda cuda, const BinaryBwd<T>& a) {
  const Loop<T> loop(a.a, a.b, a.shape);
  const cuda::Packs<cuda::kPackOf<T>> packs(loop.nest, a.a.data, a.b.data, a.dy, a.da, a.db);
  std::visit(
      [&]<class F>(const F& f) {
        cuda::launch_packs(cuda, packs, backward<T, F>, loop, a.dy, a.da, a.db, a.accumulate_a, a.accumulate_b, f);
      },
      a.functor);
}

template void run(Cuda, const BinaryFwd<float>&);
template void run(Cuda, const BinaryFwd<double>&);
template void run(Cuda, const BinaryFwd<bf16>&);
template void run(Cuda, const BinaryBwd<float>&);
template void run(Cuda, const BinaryBwd<double>&);
template void run(Cuda, const BinaryBwd<bf16>&);
template void run(Cuda, const CompareFwd<float>&);
template void run(Cuda, const CompareFwd<double>&);
template void run(Cuda, const CompareFwd<int32_t>&);
template void run(Cuda, const CompareFwd<int64_t>&);

}  // namespace margay::kernels
