#pragma once
#include "engine/cuda/launch.cuh"

// Sums over the rows of [rows, C]: gradients of parameters that all rows share. Rows are cut into pieces; each piece is
// summed by blocks that take a warp's width of columns, then the pieces are added up in order.

namespace margay::cuda {

inline constexpr int kColumnWarps = 8;  // of a block; each takes every eighth row of a piece

/// sums[piece, k, c] = sum of the k-th value of term(row, c, values) over the rows of the piece.
template <int count, class A, class Term>
__global__ void __launch_bounds__(kWarp* kColumnWarps)
    sum_pieces(Term term, int64_t rows, int64_t C, int64_t rows_per_piece, A* sums) {
  __shared__ A partial[count][kColumnWarps][kWarp];
  const int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  for (int64_t piece = blockIdx.y; piece * rows_per_piece < rows; piece += gridDim.y) {
    const int64_t begin = piece * rows_per_piece, end = begin + rows_per_piece < rows ? begin + rows_per_piece : rows;
    A total[count] = {};
    for (int64_t row = begin + threadIdx.y; c < C && row < end; row += kColumnWarps) {
      A values[count];
      term(row, c, values);
      for (int k = 0; k < count; ++k) total[k] += values[k];
    }
    for (int k = 0; k < count; ++k) partial[k][threadIdx.y][threadIdx.x] = total[k];
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
      for (int k = 0; k < count; ++k) {
        A sum = partial[k][0][threadIdx.x];
        for (int warp = 1; warp < kColumnWarps; ++warp) sum += partial[k][warp][threadIdx.x];
        sums[(piece * count + k) * C + c] = sum;
      }
    }
    __syncthreads();  // before the next piece overwrites `partial`
  }
}

/// total[c] = sum over the pieces of sums[piece * stride + c].
template <class A, class T>
__global__ void add_pieces(const A* sums, int64_t pieces, int64_t stride, int64_t C, T* total) {
  for (int64_t c = first_index(); c < C; c += index_step()) {
    A sum(0);
    for (int64_t piece = 0; piece < pieces; ++piece) sum += sums[piece * stride + c];
    total[c] = T(sum);
  }
}

/// totals[k][c] = sum over all rows of the k-th value that term(row, c, values) gives; workspace: [pieces, count, C].
template <int count, class A, class T, class Term>
void sum_columns(Cuda context, const Term& term, int64_t rows, int64_t C, int64_t rows_per_piece, A* workspace,
                 T* const (&totals)[count]) {
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece, most_blocks = 65535;
  if (C == 0) return;
  if (pieces > 0) {
    const dim3 grid(static_cast<unsigned>((C + kWarp - 1) / kWarp),
                    static_cast<unsigned>(std::min(pieces, most_blocks)));
    launch(context, grid, dim3(kWarp, kColumnWarps), sum_pieces<count, A, Term>, term, rows, C, rows_per_piece,
           workspace);
  }
  for (int k = 0; k < count; ++k)
    launch_elements(context, C, add_pieces<A, T>, workspace + k * C, pieces, count * C, C, totals[k]);
}

}  // namespace margay::cuda
