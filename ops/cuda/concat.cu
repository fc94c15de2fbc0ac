#include "ops/concat.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

template <class T>
__global__ void join(JoinRows<T> a) {
  for (int64_t i = cuda::first_index(); i < a.rows * a.row_length; i += cuda::index_step()) {
    const int64_t row = i / a.row_length;
    int64_t column = i - row * a.row_length;
    size_t part = 0;
    for (; column >= a.parts[part].length; ++part) column -= a.parts[part].length;
    a.y[i] = a.parts[part].data[row * a.parts[part].stride + column];
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const JoinRows<T>& a) {
  cuda::launch_elements(cuda, a.rows * a.row_length, join<T>, a);
}

template void run(Cuda, const JoinRows<float>&);
template void run(Cuda, const JoinRows<double>&);
template void run(Cuda, const JoinRows<bf16>&);
template void run(Cuda, const JoinRows<int32_t>&);
template void run(Cuda, const JoinRows<int64_t>&);
template void run(Cuda, const JoinRows<bool>&);

}  // namespace margay::kernels
