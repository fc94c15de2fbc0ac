#include "engine/cuda/elements.cuh"

#include <stdexcept>

#include "engine/convert.h"
#include "engine/cuda/nest.cuh"
#include "engine/cuda/packs.cuh"
#include "engine/for_dtype.h"

namespace margay::cuda {
namespace {

template <class T>
__global__ void fill_kernel(Packs<kPackOf<T>> packs, Nest<1> nest, T* to, T value) {
  packs.walk([&]<int N>(int64_t i) { store(to + nest.offset(i), repeat<N>(value)); });
}

template <class To, class From>
__global__ void copy_kernel(Packs<kPackOf<To, From>> packs, Nest<2> nest, To* to, const From* from) {
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[2];
    nest.offsets(i, at);
    const auto values = load<N>(from + at[1], nest.repeats(1));
    store(to + at[0], map([](From value) { return convert<To>(value); }, values));
  });
}

template <class T>
__global__ void find_non_finite_kernel(Packs<kPackOf<T>> packs, Nest<1> nest, const T* values, int32_t* flag) {
  packs.walk([&]<int N>(int64_t i) {
    const auto pack = load<N>(values + nest.offset(i), nest.repeats(0));
    bool finite = true;
    for (int k = 0; k < N; ++k) {
      const auto value = static_cast<acc_t<T>>(pack[k]);
      finite = finite && value - value == 0;
    }
    if (!finite) *flag = 1;  // whoever writes writes the same
  });
}

}  // namespace

void fill(Cuda context, const Region& to, double value) {
  for_dtype(to.dtype, AllTypes{}, [&]<class T>() {
    const Nest<1> nest(StridedLoop<1>(to.shape, {to.strides}));
    T* const data = static_cast<T*>(to.data);
    launch_packs(context, Packs<kPackOf<T>>(nest, data), fill_kernel<T>, nest, data, convert<T>(value));
  });
}

void copy(Cuda context, const Region& to, const Region& from) {
  const Nest<2> nest(StridedLoop<2>(to.shape, {to.strides, from.strides}));
  if (to.dtype == from.dtype && nest.contiguous()) {
    if (nest.count == 0) return;
    MARGAY_CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(nest.count) * size_of(to.dtype),
                                      cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(context.stream)));
    return;
  }
  for_dtype(to.dtype, AllTypes{}, [&]<class To>() {
    for_dtype(from.dtype, AllTypes{}, [&]<class From>() {
      To* const target = static_cast<To*>(to.data);
      const From* const source = static_cast<const From*>(from.data);
      const Packs<kPackOf<To, From>> packs(nest, target, source);
      launch_packs(context, packs, copy_kernel<To, From>, nest, target, source);
    });
  });
}

void find_non_finite(Cuda context, const Region& region, int32_t* flag) {
  for_dtype(region.dtype, FloatTypes{}, [&]<class T>() {
    const Nest<1> nest(StridedLoop<1>(region.shape, {region.strides}));
    const T* const data = static_cast<const T*>(region.data);
    launch_packs(context, Packs<kPackOf<T>>(nest, data), find_non_finite_kernel<T>, nest, data, flag);
  });
}

}  // namespace margay::cuda
