#include "engine/cuda/elements.cuh"

#include <stdexcept>

#include "engine/convert.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"
#include "engine/for_dtype.h"

namespace margay::cuda {
namespace {

template <class T>
__global__ void fill_kernel(Nest<1> nest, T* to, T value) {
  for (int64_t i = first_index(); i < nest.count; i += index_step()) to[nest.offset(i)] = value;
}

template <class To, class From>
__global__ void copy_kernel(Nest<2> nest, To* to, const From* from) {
  for (int64_t i = first_index(); i < nest.count; i += index_step()) {
    int64_t at[2];
    nest.offsets(i, at);
    to[at[0]] = convert<To>(from[at[1]]);
  }
}

template <class T>
__global__ void find_non_finite_kernel(Nest<1> nest, const T* values, int32_t* flag) {
  for (int64_t i = first_index(); i < nest.count; i += index_step()) {
    const auto value = static_cast<acc_t<T>>(values[nest.offset(i)]);
    if (!(value - value == 0)) *flag = 1;  // whoever writes writes the same
  }
}

}  // namespace

void fill(Cuda context, const Region& to, double value) {
  for_dtype(to.dtype, AllTypes{}, [&]<class T>() {
    const Nest<1> nest(StridedLoop<1>(to.shape, {to.strides}));
    launch_elements(context, nest.count, fill_kernel<T>, nest, static_cast<T*>(to.data), convert<T>(value));
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
      launch_elements(context, nest.count, copy_kernel<To, From>, nest, static_cast<To*>(to.data),
                      static_cast<const From*>(from.data));
    });
  });
}

void find_non_finite(Cuda context, const Region& region, int32_t* flag) {
  for_dtype(region.dtype, FloatTypes{}, [&]<class T>() {
    const Nest<1> nest(StridedLoop<1>(region.shape, {region.strides}));
    launch_elements(context, nest.count, find_non_finite_kernel<T>, nest, static_cast<const T*>(region.data), flag);
  });
}

}  // namespace margay::cuda
