#include "ops/one_hot.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

template <class T>
__global__ void one_hot(OneHot<T> a) {
  for (int64_t i = cuda::first_index(); i < a.rows * a.classes; i += cuda::index_step()) {
    const int64_t row = i / a.classes;
    a.y[i] = i - row * a.classes == a.ids[row] ? T(1) : T(0);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const OneHot<T>& a) {
  cuda::launch_elements(cuda, a.rows * a.classes, one_hot<T>, a);
}

template void run(Cuda, const OneHot<float>&);
template void run(Cuda, const OneHot<double>&);
template void run(Cuda, const OneHot<bf16>&);
template void run(Cuda, const OneHot<int32_t>&);
template void run(Cuda, const OneHot<int64_t>&);
template void run(Cuda, const OneHot<bool>&);

}  // namespace margay::kernels
