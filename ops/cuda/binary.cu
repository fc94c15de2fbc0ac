#include "ops/binary.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"

namespace margay::kernels {
namespace {

/// An operand on the device: elements by their offset, or one number.
template <class T>
struct Source {
  const T* data;
  acc_t<T> scalar;

  explicit Source(const BroadcastOperand<T>& operand)
      : data(operand.data), scalar(static_cast<acc_t<T>>(operand.scalar)) {}
  HOST_DEVICE acc_t<T> operator[](int64_t offset) const { return data ? acc_t<T>(data[offset]) : scalar; }
};

template <class T>
cuda::Nest<3> nest_of(const BroadcastOperand<T>& a, const BroadcastOperand<T>& b, const Shape& shape) {
  return cuda::Nest<3>(StridedLoop<3>(shape, {a.strides, b.strides, contiguous_strides(shape)}));
}

template <class T, class Y, class Functor>
__global__ void forward(cuda::Nest<3> nest, Source<T> a, Source<T> b, Y* y, Functor functor) {
  for (int64_t i = cuda::first_index(); i < nest.count; i += cuda::index_step()) {
    int64_t at[3];
    nest.offsets(i, at);
    y[at[2]] = Y(functor.value(a[at[0]], b[at[1]]));
  }
}

template <class T>
__device__ void put(T* gradient, int64_t at, acc_t<T> value, bool accumulate) {
  gradient[at] = T(accumulate ? acc_t<T>(gradient[at]) + value : value);
}

template <class T, class Functor>
__global__ void backward(cuda::Nest<3> nest, Source<T> a, Source<T> b, const T* dy, T* da, T* db, bool accumulate_a,
                         bool accumulate_b, Functor functor) {
  for (int64_t i = cuda::first_index(); i < nest.count; i += cuda::index_step()) {
    int64_t at[3];
    nest.offsets(i, at);
    const acc_t<T> x = a[at[0]], y = b[at[1]], cotangent(dy[at[2]]);
    if (da) put(da, at[2], cotangent * functor.da(x, y), accumulate_a);
    if (db) put(db, at[2], cotangent * functor.db(x, y), accumulate_b);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const BinaryFwd<T>& a) {
  const auto nest = nest_of(a.a, a.b, a.shape);
  std::visit(
      [&]<class F>(const F& f) {
        cuda::launch_elements(cuda, nest.count, forward<T, T, F>, nest, Source<T>(a.a), Source<T>(a.b), a.y, f);
      },
      a.functor);
}

template <class T>
void run(Cuda cuda, const BinaryBwd<T>& a) {
  const auto nest = nest_of(a.a, a.b, a.shape);
  std::visit(
      [&]<class F>(const F& f) {
        cuda::launch_elements(cuda, nest.count, backward<T, F>, nest, Source<T>(a.a), Source<T>(a.b), a.dy, a.da, a.db,
                              a.accumulate_a, a.accumulate_b, f);
      },
      a.functor);
}

template <class T>
void run(Cuda cuda, const CompareFwd<T>& a) {
  const auto nest = nest_of(a.a, a.b, a.shape);
  std::visit(
      [&]<class F>(const F& f) {
        cuda::launch_elements(cuda, nest.count, forward<T, bool, F>, nest, Source<T>(a.a), Source<T>(a.b), a.y, f);
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
