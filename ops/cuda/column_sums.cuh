#pragma once
#include <algorithm>
#include <initializer_list>

#include "engine/cuda/packs.cuh"

// Sums over the rows of [rows, C]: gradients of parameters that all rows share. Rows are cut into pieces; each piece is
// summed by blocks that take a pack of columns per lane, then the pieces are added up in order.

namespace margay::cuda {

inline constexpr int kColumnWarps = 16;  // of a block; each takes every sixteenth row of a piece, or piece

/// sums[piece, k, c] = sum of the k-th of what term.operator()<N>(row, c, values) gives for the columns c ... c + N -
/// 1, over the rows of the piece.
template <int N, int count, class A, class Term>
__global__ void __launch_bounds__(kWarp* kColumnWarps)
    sum_pieces(Term term, int64_t rows, int64_t C, int64_t rows_per_piece, A* sums) {
  __shared__ Pack<A, N> partial[kColumnWarps][kWarp];
  const int64_t c = (int64_t{blockIdx.x} * kWarp + threadIdx.x) * N;
  for (int64_t piece = blockIdx.y; piece * rows_per_piece < rows; piece += gridDim.y) {
    const int64_t begin = piece * rows_per_piece, end = begin + rows_per_piece < rows ? begin + rows_per_piece : rows;
    Pack<A, N> total[count];
    for (int k = 0; k < count; ++k) total[k] = repeat<N>(A(0));
#pragma unroll 4
    for (int64_t row = c < C ? begin + threadIdx.y : end; row < end; row += kColumnWarps) {
      Pack<A, N> values[count];
      term.template operator()<N>(row, c, values);
      for (int k = 0; k < count; ++k)
        for (int n = 0; n < N; ++n) total[k][n] += values[k][n];
    }
    for (int k = 0; k < count; ++k) {
      partial[threadIdx.y][threadIdx.x] = total[k];
      __syncthreads();
      if (threadIdx.y == 0 && c < C) {
        for (int warp = 1; warp < kColumnWarps; ++warp)
          for (int n = 0; n < N; ++n) total[k][n] += partial[warp][threadIdx.x][n];
        store(sums + (piece * count + k) * C + c, total[k]);
      }
      __syncthreads();  // before the next sums overwrite `partial`
    }
  }
}

template <int count, class T>
struct ColumnTotals {
  T* data[count];
  bool add = false;  // to what is there
};

/// totals[k][c] = sum over the pieces of sums[piece, k, c], k being the block's place in y.
template <int count, class A, class T>
__global__ void __launch_bounds__(kWarp* kColumnWarps)
    add_pieces(const A* sums, int64_t pieces, int64_t C, ColumnTotals<count, T> totals) {
  __shared__ A partial[kColumnWarps][kWarp];
  const int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x, k = blockIdx.y;
  A sum(0);
#pragma unroll 4
  for (int64_t piece = c < C ? threadIdx.y : pieces; piece < pieces; piece += kColumnWarps)
    sum += sums[(piece * count + k) * C + c];
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= C) return;
  for (int warp = 1; warp < kColumnWarps; ++warp) sum += partial[warp][threadIdx.x];
  T& total = totals.data[k][c];
  total = T(totals.add ? A(total) + sum : sum);
}

/// totals.data[k][c] = the sum of the pieces [pieces, count, C].
template <int count, class A, class T>
void join_pieces(Cuda context, const A* sums, int64_t pieces, int64_t C, const ColumnTotals<count, T>& totals) {
  const dim3 grid(static_cast<unsigned>((C + kWarp - 1) / kWarp), count);
  if (C > 0) launch(context, grid, dim3(kWarp, kColumnWarps), add_pieces<count, A, T>, sums, pieces, C, totals);
}

/// totals.data[k][c] = sum over all rows of the k-th value of term; workspace: [pieces, count, C]. `data` is what term
/// reads rows of C elements from.
template <int count, class A, class T, class Term>
void sum_columns(Cuda context, const Term& term, int64_t rows, int64_t C, int64_t rows_per_piece, A* workspace,
                 const ColumnTotals<count, T>& totals, std::initializer_list<const T*> data) {
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece, most_blocks = 65535;
  if (C == 0) return;
  const auto sum = [&]<int N>() {
    const int64_t groups = (C / N + kWarp - 1) / kWarp;
    const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(std::min(pieces, most_blocks)));
    launch(context, grid, dim3(kWarp, kColumnWarps), sum_pieces<N, count, A, Term>, term, rows, C, rows_per_piece,
           workspace);
  };
  constexpr int N = kPackOf<T>;
  const bool has_packs = C % N == 0 && aligned<N>(workspace) &&
                         std::all_of(data.begin(), data.end(), [](const T* rows) { return aligned<N>(rows); });
  if (pieces > 0) has_packs ? sum.template operator()<N>() : sum.template operator()<1>();
  join_pieces(context, workspace, pieces, C, totals);
}

}  // namespace margay::cuda
