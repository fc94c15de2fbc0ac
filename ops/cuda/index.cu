#include "ops/index.h"

#include "ops/cuda/rows.cuh"

namespace margay::kernels {
namespace {

// Any bad place, whichever thread writes last; -1 stays if there is none.
__global__ void find_any_bad(CheckIndex<int32_t> a) {
  for (int64_t j = cuda::first_index(); j < a.count; j += cuda::index_step())
    if (a.index[j] < a.low || a.index[j] >= a.high) *a.first_bad = j;
}

// One block: the first bad place, at or before the one that was found.
__global__ void __launch_bounds__(cuda::kThreads) find_first_bad(CheckIndex<int32_t> a) {
  const int64_t found = *a.first_bad;
  if (found < 0) return;
  int64_t first = found;
  for (int64_t j = threadIdx.x; j < first; j += cuda::kThreads)
    if (a.index[j] < a.low || a.index[j] >= a.high) first = j;
  first = cuda::block_reduce<cuda::Smallest>(first);
  if (threadIdx.x == 0) *a.first_bad = first;
}

template <class T>
__global__ void take(TakeIndex<T> a) {
  for (int64_t i = cuda::first_index(); i < a.outer * a.count * a.inner; i += cuda::index_step()) {
    const int64_t row = i / a.inner, o = row / a.count, source = a.index[row - o * a.count];
    a.y[i] = source < 0 ? T{} : a.x[(o * a.size + source) * a.inner + (i - row * a.inner)];
  }
}

template <class T>
__global__ void take_along(TakeAlong<T> a) {
  for (int64_t i = cuda::first_index(); i < a.outer * a.count * a.inner; i += cuda::index_step()) {
    const int64_t row = i / a.inner, o = row / a.count;
    a.y[i] = a.x[(o * a.size + a.index[i]) * a.inner + (i - row * a.inner)];
  }
}

// A thread per column, which adds to it in the order of j.
template <class T>
__global__ void add_along(AddAlong<T> a) {
  using A = acc_t<T>;
  for (int64_t column = cuda::first_index(); column < a.outer * a.inner; column += cuda::index_step()) {
    const int64_t o = column / a.inner, i = column - o * a.inner;
    T* const to = a.to + o * a.size * a.inner + i;
    for (int64_t j = 0; j < a.count; ++j) {
      const int64_t at = (o * a.count + j) * a.inner + i;
      T& sum = to[a.index[at] * a.inner];
      sum = T(A(sum) + A(a.from[at]));
    }
  }
}

// order = the positions sorted by index, those of one index in their order, missing ones (-1) last. A thread per
// position counts those that come before it, in tiles that its block shares: count^2 comparisons, which for the 2^16
// tokens of a large batch are few next to the work on the rows, and neither atomics nor further passes.
__global__ void __launch_bounds__(cuda::kThreads) sort_by_index(const int32_t* index, int64_t count, int32_t* order) {
  __shared__ uint32_t tile[cuda::kThreads];
  const int64_t j = cuda::first_index();
  const uint32_t own = j < count ? static_cast<uint32_t>(index[j]) : 0;  // -1 becomes the largest
  int32_t place = 0;
  for (int64_t start = 0; start < count; start += cuda::kThreads) {
    const int64_t mine = start + threadIdx.x;
    tile[threadIdx.x] = mine < count ? static_cast<uint32_t>(index[mine]) : 0;
    __syncthreads();
    const int64_t left = count - start;
    const int length = left < cuda::kThreads ? static_cast<int>(left) : cuda::kThreads;
    const int before = j - start < 0 ? 0 : j - start < length ? static_cast<int>(j - start) : length;
    for (int k = 0; k < before; ++k) place += tile[k] <= own;
    for (int k = before; k < length; ++k) place += tile[k] < own;
    __syncthreads();
  }
  if (j < count) order[place] = static_cast<int32_t>(j);
}

// The sorted occurrences, cut into pieces. occurrence k belongs to row index[order[k]].
template <class T>
struct Occurrences {
  AddIndex<T> a;
  int64_t per_piece, pieces;
  __device__ int32_t row(int64_t k) const { return a.index[a.order[k]]; }
  __device__ T& dx(int64_t o, int32_t row, int64_t i) const { return a.dx[(o * a.size + row) * a.inner + i]; }
  __device__ acc_t<T>& edge(int64_t o, int64_t piece, int64_t i) const {
    return a.edges[(o * pieces + piece) * a.inner + i];
  }
};

// A thread per piece and column. A row that starts in a piece is written by it alone. What a piece has at its begin of
// a row that may have started before waits in `edges`.
template <class T>
__global__ void add_pieces(Occurrences<T> all) {
  using A = acc_t<T>;
  const AddIndex<T>& a = all.a;
  for (int64_t n = cuda::first_index(); n < a.outer * all.pieces * a.inner; n += cuda::index_step()) {
    const int64_t i = n % a.inner, piece = n / a.inner % all.pieces, o = n / a.inner / all.pieces;
    const int64_t begin = piece * all.per_piece, end = std::min(a.count, begin + all.per_piece);
    const T* const dy = a.dy + o * a.count * a.inner + i;
    for (int64_t k = begin; k < end;) {
      const int32_t row = all.row(k);
      if (row < 0) break;
      const bool edge = piece > 0 && k == begin;
      A sum(0);
      for (; k < end && all.row(k) == row; ++k) sum += A(dy[a.order[k] * a.inner]);
      if (edge) {
        all.edge(o, piece, i) = sum;
      } else {
        T& dx = all.dx(o, row, i);
        dx = T(A(dx) + sum);
      }
    }
  }
}

// Adds what waits in `edges`: a thread per piece and column, of which the first piece of a row takes those of all that
// follow with the same row.
template <class T>
__global__ void add_edges(Occurrences<T> all) {
  using A = acc_t<T>;
  const AddIndex<T>& a = all.a;
  for (int64_t n = cuda::first_index(); n < a.outer * all.pieces * a.inner; n += cuda::index_step()) {
    const int64_t i = n % a.inner, piece = n / a.inner % all.pieces, o = n / a.inner / all.pieces;
    const int32_t row = all.row(piece * all.per_piece);
    if (piece == 0 || row < 0 || (piece > 1 && all.row((piece - 1) * all.per_piece) == row)) continue;
    A sum(0);
    for (int64_t next = piece; next < all.pieces && all.row(next * all.per_piece) == row; ++next)
      sum += all.edge(o, next, i);
    T& dx = all.dx(o, row, i);
    dx = T(A(dx) + sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const CheckIndex<T>& a) {
  cuda::set_bytes(cuda, a.first_bad, 0xff, sizeof(*a.first_bad));  // -1
  if (a.count == 0) return;
  cuda::launch_elements(cuda, a.count, find_any_bad, a);
  cuda::launch(cuda, dim3(1), dim3(cuda::kThreads), find_first_bad, a);
}

template <class T>
void run(Cuda cuda, const TakeIndex<T>& a) {
  cuda::launch_elements(cuda, a.outer * a.count * a.inner, take<T>, a);
}

template <class T>
void run(Cuda cuda, const AddIndex<T>& a) {
  if (a.count == 0 || a.outer * a.inner == 0) return;
  const int64_t blocks = (a.count + cuda::kThreads - 1) / cuda::kThreads;  // count < 2^31
  cuda::launch(cuda, dim3(static_cast<unsigned>(blocks)), dim3(cuda::kThreads), sort_by_index, a.index, a.count,
               a.order);
  const Occurrences<T> all{a, a.occurrences_per_piece(a.inner), a.pieces(a.count, a.inner)};
  cuda::launch_elements(cuda, a.outer * all.pieces * a.inner, add_pieces<T>, all);
  if (all.pieces > 1) cuda::launch_elements(cuda, a.outer * all.pieces * a.inner, add_edges<T>, all);
}

template <class T>
void run(Cuda cuda, const TakeAlong<T>& a) {
  cuda::launch_elements(cuda, a.outer * a.count * a.inner, take_along<T>, a);
}

template <class T>
void run(Cuda cuda, const AddAlong<T>& a) {
  cuda::launch_elements(cuda, a.outer * a.inner, add_along<T>, a);
}

template void run(Cuda, const CheckIndex<int32_t>&);
template void run(Cuda, const TakeIndex<float>&);
template void run(Cuda, const TakeIndex<double>&);
template void run(Cuda, const TakeIndex<bf16>&);
template void run(Cuda, const TakeIndex<int32_t>&);
template void run(Cuda, const TakeIndex<int64_t>&);
template void run(Cuda, const TakeIndex<bool>&);
template void run(Cuda, const AddIndex<float>&);
template void run(Cuda, const AddIndex<double>&);
template void run(Cuda, const AddIndex<bf16>&);
template void run(Cuda, const TakeAlong<float>&);
template void run(Cuda, const TakeAlong<double>&);
template void run(Cuda, const TakeAlong<bf16>&);
template void run(Cuda, const TakeAlong<int32_t>&);
template void run(Cuda, const TakeAlong<int64_t>&);
template void run(Cuda, const TakeAlong<bool>&);
template void run(Cuda, const AddAlong<float>&);
template void run(Cuda, const AddAlong<double>&);
template void run(Cuda, const AddAlong<bf16>&);
template void run(Cuda, const AddAlong<int32_t>&);
template void run(Cuda, const AddAlong<int64_t>&);

}  // namespace margay::kernels
