#include "ops/concat.h"

#include "engine/cuda/packs.cuh"

namespace margay::kernels {
namespace {

template <class T>
using Packs = cuda::Packs<cuda::kPackOf<T>>;

/// `places` leads to the row and the column of an element.
template <class T>
__global__ void join(Packs<T> packs, cuda::Nest<2> places, JoinRows<T> a) {
  packs.walk([&]<int N>(int64_t i) {
    int64_t place[2];
    places.offsets(i, place);
    auto& [row, column] = place;
    size_t part = 0;
    for (; column >= a.parts[part].length; ++part) column -= a.parts[part].length;
    cuda::store(a.y + i, cuda::load<N>(a.parts[part].data + row * a.parts[part].stride + column));
  });
}

}  // namespace

template <class T>
void run(Cuda cuda, const JoinRows<T>& a) {
  constexpr int N = cuda::kPackOf<T>;
  const cuda::Nest<2> places(StridedLoop<2>({a.rows, a.row_length}, {Shape{1, 0}, Shape{0, 1}}));
  bool whole = cuda::aligned<N>(a.y);
  for (size_t i = 0; i < a.count; ++i) {
    const auto& part = a.parts[i];
    whole = whole && part.length % N == 0 && part.stride % N == 0 && cuda::aligned<N>(part.data);
  }
  cuda::launch_packs(cuda, Packs<T>(places.count, whole), join<T>, places, a);
}

template void run(Cuda, const JoinRows<float>&);
template void run(Cuda, const JoinRows<double>&);
template void run(Cuda, const JoinRows<bf16>&);
template void run(Cuda, const JoinRows<int32_t>&);
template void run(Cuda, const JoinRows<int64_t>&);
template void run(Cuda, const JoinRows<bool>&);

}  // namespace margay::kernels
