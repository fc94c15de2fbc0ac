#pragma once
#include <limits>

#include "engine/cuda/reduce.cuh"
#include "ops/cuda/attention_tile.cuh"

// Attention of single queries, for which a tile of queries would stay nearly empty: a block has one query and a part of
// the keys it sees, so that one token after many keeps a whole GPU busy.

namespace margay::kernels::attention {

/// A query of a head, the keys begin ... end - 1 that it sees, and where its result goes: zeros if it sees none.
template <class T>
struct QueryTask {
  const T* q = nullptr;
  Rows<const T> k = {}, v = {};
  int64_t begin = 0, end = 0;
  acc_t<T> scale = acc_t<T>(1);
  T* y;
  acc_t<T>* lse = nullptr;
};

inline constexpr int kKeys = 64;       // whose weights are in shared memory at a time
inline constexpr int kKeyThreads = 8;  // that share a score

// A block per unit, part of its keys and kThreads columns of its result. problem.task(unit) says what to do,
// problem.factor(unit, j) what dropout makes of the weight of key j.
template <class T, class Problem>
__global__ void __launch_bounds__(cuda::kThreads)
    attend_part(Problem problem, int64_t dh, int64_t parts, acc_t<T>* partials) {
  using A = acc_t<T>;
  constexpr A lowest = std::numeric_limits<A>::lowest();
  __shared__ A q[KeyParts::kMostHead], weights[kKeys], kept[kKeys], sums[cuda::kThreads];
  const int64_t unit = blockIdx.x, part = blockIdx.y, first_column = int64_t{blockIdx.z} * cuda::kThreads;
  const QueryTask<T> query = problem.task(unit);
  const int64_t keys = query.end - query.begin;
  const int64_t begin = query.begin + part * keys / parts, end = query.begin + (part + 1) * keys / parts;
  if (keys > 0)
    for (int64_t d = threadIdx.x; d < dh; d += cuda::kThreads) q[d] = A(query.q[d]);
  // Threads share the keys where there are fewer columns than threads.
  int columns = 1;
  while (columns < cuda::kThreads && first_column + columns < dh) columns *= 2;
  const int own = static_cast<int>(threadIdx.x) % columns, share = static_cast<int>(threadIdx.x) / columns,
            shares = cuda::kThreads / columns;
  const int64_t column = first_column + own;
  A maximum = lowest, total(0), sum(0);
  for (int64_t key = begin; key < end; key += kKeys) {
    const int count = static_cast<int>(min(int64_t{kKeys}, end - key));
    __syncthreads();  // q is written, and who reads the weights is done
    for (int i = static_cast<int>(threadIdx.x) / kKeyThreads; i < kKeys; i += cuda::kThreads / kKeyThreads) {
      A score(0);
      if (i < count)
        for (int64_t d = threadIdx.x % kKeyThreads; d < dh; d += kKeyThreads) score += q[d] * A(query.k[key + i][d]);
      for (int distance = kKeyThreads / 2; distance > 0; distance /= 2)
        score += __shfl_xor_sync(0xffffffffu, score, distance);
      if (threadIdx.x % kKeyThreads == 0) weights[i] = i < count ? score * query.scale : lowest;
    }
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % cuda::kWarp;
    A top = maximum;
    for (int i = lane; i < kKeys; i += cuda::kWarp) top = weights[i] > top ? weights[i] : top;
    top = cuda::warp_reduce<Maximum>(top);
    __syncthreads();  // everyone has read the scores
    if (threadIdx.x < kKeys) {
      const int i = static_cast<int>(threadIdx.x);
      weights[i] = i < count ? std::exp(weights[i] - top) : A(0);
      kept[i] = i < count ? weights[i] * problem.factor(unit, key + i) : A(0);
    }
    __syncthreads();
    const A rescale = std::exp(maximum - top);
    maximum = top;
    A added(0);
    for (int i = lane; i < kKeys; i += cuda::kWarp) added += weights[i];
    total = total * rescale + cuda::warp_reduce<cuda::Sum>(added);
    sum *= rescale;
    if (column < dh)
      for (int i = share; i < count; i += shares) sum += kept[i] * A(query.v[key + i][column]);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (share > 0) return;
  for (int other = 1; other < shares; ++other) sum += sums[other * columns + own];
  if (parts > 1) {
    A* const partial = partials + (unit * parts + part) * (dh + 2);
    if (column < dh) partial[column] = sum;
    if (column == 0) partial[dh] = maximum, partial[dh + 1] = total;
  } else {
    if (column < dh) query.y[column] = keys > 0 ? T(sum / total) : T(A(0));
    if (column == 0 && query.lse) *query.lse = maximum + std::log(total);
  }
}

// A thread per unit and column.
template <class T, class Problem>
__global__ void __launch_bounds__(cuda::kThreads)
    join_parts(Problem problem, int64_t units, int64_t dh, int64_t parts, const acc_t<T>* partials) {
  using A = acc_t<T>;
  const int64_t columns = dh > 0 ? dh : 1;  // lse is wanted of heads of size 0 as well
  for (int64_t i = cuda::first_index(); i < units * columns; i += cuda::index_step()) {
    const int64_t unit = i / columns, column = i % columns;
    const A* const partial = partials + unit * parts * (dh + 2);
    A top = partial[dh], sum(0), total(0);
    for (int64_t part = 1; part < parts; ++part) top = Maximum::combine(top, partial[part * (dh + 2) + dh]);
    for (int64_t part = 0; part < parts; ++part) {
      const A share = std::exp(partial[part * (dh + 2) + dh] - top);
      if (column < dh) sum += share * partial[part * (dh + 2) + column];
      total += share * partial[part * (dh + 2) + dh + 1];
    }
    const QueryTask<T> query = problem.task(unit);
    if (column < dh) query.y[column] = query.begin < query.end ? T(sum / total) : T(A(0));
    if (column == 0 && query.lse) *query.lse = top + std::log(total);
  }
}

/// Attends to all keys of all units; `memory` [parts.memory_size(dh)], dh at most KeyParts::kMostHead.
template <class T, class Problem>
void attend(Cuda cuda, const Problem& problem, const KeyParts& parts, int64_t dh, acc_t<T>* memory) {
  if (parts.units == 0) return;
  const int64_t columns = std::max<int64_t>(1, (dh + cuda::kThreads - 1) / cuda::kThreads);
  const dim3 grid(static_cast<unsigned>(parts.units), static_cast<unsigned>(parts.count),
                  static_cast<unsigned>(columns));
  cuda::launch(cuda, grid, dim3(cuda::kThreads), attend_part<T, Problem>, problem, dh, parts.count, memory);
  if (parts.count > 1)
    cuda::launch_elements(cuda, parts.units * std::max<int64_t>(1, dh), join_parts<T, Problem>, problem, parts.units,
                          dh, parts.count, memory);
}

}  // namespace margay::kernels::attention
