#include <algorithm>

#include "engine/cuda/elements.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"
#include "engine/cuda/packs.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/for_dtype.h"
#include "engine/reduction_axes.h"
#include "engine/scratch.h"

namespace margay::cuda {
namespace {

template <class T>
__global__ void add_kernel(Packs<kPackOf<T>> packs, Nest<2> nest, T* to, const T* from) {
  packs.walk([&]<int N>(int64_t i) {
    int64_t at[2];
    nest.offsets(i, at);
    const auto sum = [](T a, T b) { return T(acc_t<T>(a) + acc_t<T>(b)); };
    store(to + at[0], map(sum, load<N>(to + at[0]), load<N>(from + at[1], nest.repeats(1))));
  });
}

constexpr int64_t kChunk = 4096;  // terms that one block sums for a result

/// Sums of `from` over some axes: results[0] leads to an element of `to`, results[1] + terms to an element of `from`.
/// Long sums are cut into chunks by shape alone; the sums of chunks are added up in order by combine_kernel.
template <class T>
struct Sums {
  T* to;
  const T* from;
  acc_t<T>* partial;  // [chunks, results]; not used for a single chunk
  Nest<2> results;
  Nest<1> terms;
  int64_t chunks;

  __device__ void finish(int64_t result, int64_t chunk, acc_t<T> sum) const {
    if (chunks > 1) {
      partial[chunk * results.count + result] = sum;
      return;
    }
    int64_t at[2];
    results.offsets(result, at);
    to[at[0]] = T(acc_t<T>(to[at[0]]) + sum);
  }
};

/// Neighbouring terms lie side by side: a warp sums the chunk of one result. Block (32, 8): 8 results.
template <class T>
__global__ void sum_rows_kernel(Sums<T> a) {
  const int64_t groups = (a.results.count + blockDim.y - 1) / blockDim.y;
  const int64_t chunk = blockIdx.x / groups;
  const int64_t result = blockIdx.x % groups * blockDim.y + threadIdx.y;
  if (result >= a.results.count) return;  // the whole warp
  int64_t at[2];
  a.results.offsets(result, at);
  const int64_t end = min(a.terms.count, (chunk + 1) * kChunk);
  acc_t<T> sum = 0;
  for (int64_t term = chunk * kChunk + threadIdx.x; term < end; term += kWarp)
    sum += acc_t<T>(a.from[at[1] + a.terms.offset(term)]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) a.finish(result, chunk, sum);
}

/// Neighbouring results lie side by side: lanes are results, and the 8 rows of the block share the terms of a chunk.
template <class T>
__global__ void sum_columns_kernel(Sums<T> a) {
  constexpr int rows = kThreads / kWarp;
  __shared__ acc_t<T> sums[rows][kWarp];
  const int64_t groups = (a.results.count + kWarp - 1) / kWarp;
  const int64_t chunk = blockIdx.x / groups;
  const int64_t result = blockIdx.x % groups * kWarp + threadIdx.x;
  const bool inside = result < a.results.count;
  acc_t<T> sum = 0;
  if (inside) {
    int64_t at[2];
    a.results.offsets(result, at);
    const int64_t end = min(a.terms.count, (chunk + 1) * kChunk);
    for (int64_t term = chunk * kChunk + threadIdx.y; term < end; term += rows)
      sum += acc_t<T>(a.from[at[1] + a.terms.offset(term)]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  for (int row = 1; row < rows; ++row) sum += sums[row][threadIdx.x];
  a.finish(result, chunk, sum);
}

template <class T>
__global__ void combine_kernel(Sums<T> a) {
  for (int64_t result = first_index(); result < a.results.count; result += index_step()) {
    acc_t<T> sum = 0;
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) sum += a.partial[chunk * a.results.count + result];
    int64_t at[2];
    a.results.offsets(result, at);
    a.to[at[0]] = T(acc_t<T>(a.to[at[0]]) + sum);
  }
}

template <class T>
void add_reduced(Cuda context, const Region& to, const Region& from, CachingAllocator& allocator) {
  const ReductionAxes axes(to, from);
  const Nest<2> results(StridedLoop<2>(axes.kept, {axes.kept_to, axes.kept_from}));
  const Nest<1> terms(StridedLoop<1>(axes.summed, {axes.summed_from}));
  if (results.count == 0 || terms.count == 0) return;
  Sums<T> sums{static_cast<T*>(to.data),           static_cast<const T*>(from.data), nullptr, results, terms,
               (terms.count + kChunk - 1) / kChunk};
  // Freed when the kernels have been started: whoever gets it next runs later on the same stream.
  const int64_t partial_sums = sums.chunks > 1 ? checked_multiply(results.count, sums.chunks) : 0;
  const Scratch scratch(allocator, static_cast<size_t>(partial_sums) * sizeof(acc_t<T>));
  sums.partial = static_cast<acc_t<T>*>(scratch.data());
  const bool rows = terms.stride[0][terms.ndim - 1] == 1 && results.stride[1][results.ndim - 1] != 1;
  const dim3 block(kWarp, kThreads / kWarp);
  const int64_t results_in_block = rows ? block.y : block.x;
  const int64_t blocks = (results.count + results_in_block - 1) / results_in_block * sums.chunks;
  launch(context, dim3(static_cast<unsigned>(blocks)), block, rows ? sum_rows_kernel<T> : sum_columns_kernel<T>, sums);
  if (sums.chunks > 1) launch_elements(context, results.count, combine_kernel<T>, sums);
}

}  // namespace

void accumulate(Cuda context, const Region& to, const Region& from, CachingAllocator& allocator) {
  for_dtype(to.dtype, FloatTypes{}, [&]<class T>() {
    if (to.shape == from.shape) {
      const Nest<2> nest(StridedLoop<2>(to.shape, {to.strides, from.strides}));
      T* const target = static_cast<T*>(to.data);
      const T* const source = static_cast<const T*>(from.data);
      launch_packs(context, Packs<kPackOf<T>>(nest, target, source), add_kernel<T>, nest, target, source);
    } else {
      add_reduced<T>(context, to, from, allocator);
    }
  });
}

}  // namespace margay::cuda
