#include "ops/argmax.h"

#include <limits>

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// A team per row: the largest value, then the first place where it stands.
template <class Team, class T>
__global__ void __launch_bounds__(cuda::kThreads) argmax(ArgMax<T> a) {
  using A = acc_t<T>;
  for (int64_t row = Team::first(); row < a.rows; row += Team::step()) {
    const T* const x = a.x + row * a.N;
    A largest = -std::numeric_limits<A>::infinity();
    for (int64_t i = Team::rank(); i < a.N; i += Team::kSize) largest = cuda::Largest::combine(largest, A(x[i]));
    largest = Team::template reduce<cuda::Largest>(largest);
    int64_t place = a.N;
    for (int64_t i = Team::rank(); i < place; i += Team::kSize) {
      const A value(x[i]);
      if (value == largest || value != value) place = i;
    }
    place = Team::template reduce<cuda::Smallest>(place);
    if (Team::rank() == 0) a.y[row] = static_cast<int32_t>(place);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const ArgMax<T>& a) {
  cuda::launch_rows(cuda, a.rows, a.N, argmax<cuda::WarpTeam, T>, argmax<cuda::BlockTeam, T>, a);
}

template void run(Cuda, const ArgMax<float>&);
template void run(Cuda, const ArgMax<double>&);
template void run(Cuda, const ArgMax<bf16>&);

}  // namespace margay::kernels
