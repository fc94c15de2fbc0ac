#pragma once
#include <algorithm>
#include <limits>
#include <optional>

#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"
#include "engine/flop_counter.h"
#include "ops/cuda/cublaslt.cuh"
#include "ops/gpu_products.h"

namespace margay::cuda {

/// A matrix as a kernel reads it: element (i, j) lies at i * row + j * column.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row, column;

  MatrixView transposed() const { return {data, column, row}; }
  MatrixView from_row(int64_t i) const { return {data + i * row, row, column}; }
};

/// C[i] = sum over s of A[i, s] B[i, s] + bias, added to C[i] where `add`; A [m, k], B [k, n], C [m, n] by rows, `ld`
/// apart. `batch` leads from i to offsets in A and B, `summed` from s. Sums run in acc_t<T>.
template <class T, class Out = T>
struct Gemm {
  MatrixView<T> a, b;
  Out* c;
  int64_t m, n, k, ld;
  bool add = false;
  const Out* bias = nullptr;  // [n], or none
  Nest<2> batch{StridedLoop<2>(Shape{}, {Shape{}, Shape{}})}, summed{batch};
  int64_t c_batch = 0;  // distance of C[i] and C[i + 1]
  /// k is cut into this many slices, which are multiplied apart: slice s gives the C at s * c_slice.
  int64_t slices = 1, c_slice = 0;
};

namespace gemm {

inline constexpr int kTile = 64, kDepth = 16, kEach = 4;  // a block makes a tile of C, a thread kEach x kEach of it

/// Elements (i, p) of `from`, i < rows and p < depth, go to tile[p][i]; the others are 0. Neighbouring threads read
/// neighbouring elements.
template <class T, class A>
__device__ void load(MatrixView<T> from, int64_t rows, int64_t depth, A (&tile)[kDepth][kTile + 1]) {
  const bool along_depth = from.column == 1;
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kDepth; e += kThreads) {
    const int i = along_depth ? e / kDepth : e % kTile, p = along_depth ? e % kDepth : e / kTile;
    tile[p][i] = i < rows && p < depth ? A(from.data[i * from.row + p * from.column]) : A(0);
  }
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads) product(Gemm<T, Out> g) {
  using A = acc_t<T>;
  __shared__ A a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile + 1];
  const int64_t tiles_n = (g.n + kTile - 1) / kTile;
  const int64_t i0 = blockIdx.x / tiles_n * kTile, j0 = blockIdx.x % tiles_n * kTile;
  const int64_t begin = blockIdx.z * g.k / g.slices, end = (blockIdx.z + int64_t{1}) * g.k / g.slices;
  const int ti = static_cast<int>(threadIdx.x) / (kTile / kEach), tj = static_cast<int>(threadIdx.x) % (kTile / kEach);
  for (int64_t batch = blockIdx.y; batch < g.batch.count; batch += gridDim.y) {
    int64_t base[2];
    g.batch.offsets(batch, base);
    A sum[kEach][kEach] = {};
    for (int64_t s = 0; s < g.summed.count; ++s) {
      int64_t at[2];
      g.summed.offsets(s, at);
      const T *const a = g.a.data + base[0] + at[0], *const b = g.b.data + base[1] + at[1];
      for (int64_t p = begin; p < end; p += kDepth) {
        load(MatrixView<T>{a + i0 * g.a.row + p * g.a.column, g.a.row, g.a.column}, g.m - i0, end - p, a_tile);
        load(MatrixView<T>{b + p * g.b.row + j0 * g.b.column, g.b.column, g.b.row}, g.n - j0, end - p, b_tile);
        __syncthreads();
        for (int q = 0; q < kDepth; ++q) {
          for (int x = 0; x < kEach; ++x) {
            // A thread's rows and columns are kTile / kEach apart, so that a warp reads neighbours.
            const A left = a_tile[q][ti + x * (kTile / kEach)];
            for (int y = 0; y < kEach; ++y) sum[x][y] += left * b_tile[q][tj + y * (kTile / kEach)];
          }
        }
        __syncthreads();
      }
    }
    Out* const c = g.c + batch * g.c_batch + blockIdx.z * g.c_slice;
    for (int x = 0; x < kEach; ++x) {
      for (int y = 0; y < kEach; ++y) {
        const int64_t i = i0 + ti + x * (kTile / kEach), j = j0 + tj + y * (kTile / kEach);
        if (i >= g.m || j >= g.n) continue;
        A value = sum[x][y];
        if (g.bias) value += A(g.bias[j]);
        if (g.add) value += A(c[i * g.ld + j]);
        c[i * g.ld + j] = Out(value);
      }
    }
  }
}

/// y[i] = part 0 + part 1 + ... at i, added to y[i] where `add`; parts are n apart.
template <class T>
__global__ void join(const acc_t<T>* parts, int64_t count, int64_t n, bool add, T* y) {
  for (int64_t i = first_index(); i < n; i += index_step()) {
    acc_t<T> sum = add ? acc_t<T>(y[i]) : acc_t<T>(0);
    for (int64_t part = 0; part < count; ++part) sum += parts[part * n + i];
    y[i] = T(sum);
  }
}

/// The matrices of an operand of `batch` in a form that the library takes; none where the strides have none.
template <class T>
std::optional<LibraryFactor> library_factor(MatrixView<T> view, int64_t rows, int64_t columns, const Nest<2>& batch,
                                            int operand) {
  // The stride along an axis of size 1 is never used.
  const int64_t row = rows > 1 ? view.row : columns, column = columns > 1 ? view.column : rows;
  const int64_t stride = batch.count > 1 ? batch.stride[operand][0] : 0;
  if ((columns == 1 || column == 1) && row >= columns) return LibraryFactor{view.data, false, row, stride};
  if ((rows == 1 || row == 1) && column >= rows) return LibraryFactor{view.data, true, column, stride};
  return std::nullopt;
}

template <class T, class Out>
void count_flops(const Gemm<T, Out>& g) {
  FlopCounter::add(2 * g.m * g.n * g.k * g.batch.count * g.summed.count);
}

/// Returns false where the library does not make the product.
template <class T, class Out>
bool by_library(Cuda context, const Gemm<T, Out>& g) {
  const bool one_stack = g.batch.ndim == 1 && g.batch.count <= std::numeric_limits<int32_t>::max();
  if (gpu_products() != GpuProducts::library || g.k == 0 || g.summed.count != 1 || !one_stack) return false;
  const auto a = library_factor(g.a, g.m, g.k, g.batch, 0), b = library_factor(g.b, g.k, g.n, g.batch, 1);
  return a && b &&
         multiply_by_library(context, {*a, *b, g.c, g.bias, dtype_of<T>, dtype_of<Out>, g.m, g.n, g.k, g.batch.count,
                                       g.ld, g.c_batch, g.add});
}

template <class T, class Out>
void by_own_kernel(Cuda context, const Gemm<T, Out>& g) {
  const auto tiles = [](int64_t size) { return (size + kTile - 1) / kTile; };
  const int64_t blocks = tiles(g.m) * tiles(g.n), batches = std::min<int64_t>(g.batch.count, 65535);
  launch(context, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(batches), static_cast<unsigned>(g.slices)),
         dim3(kThreads), product<T, Out>, g);
}

}  // namespace gemm

/// Makes the product: by the library, or else by the kernel above.
template <class T, class Out>
void multiply(Cuda context, const Gemm<T, Out>& g) {
  if (g.m == 0 || g.n == 0 || g.batch.count == 0) return;
  gemm::count_flops(g);
  if (!gemm::by_library(context, g)) gemm::by_own_kernel(context, g);
}

/// The same for one small C of large depth, which the kernel above cuts: `slices` parts in `workspace` [slices, m, n]
/// are then joined in order.
template <class T, class Out>
void multiply_sliced(Cuda context, const Gemm<T, Out>& g, int64_t slices, acc_t<Out>* workspace) {
  if (slices <= 1) return multiply(context, g);
  if (g.m == 0 || g.n == 0) return;
  gemm::count_flops(g);
  if (gemm::by_library(context, g)) return;
  Gemm<T, acc_t<Out>> parts{g.a, g.b, workspace, g.m, g.n, g.k, g.n};
  parts.slices = slices;
  parts.c_slice = g.m * g.n;
  gemm::by_own_kernel(context, parts);
  launch_elements(context, g.m * g.n, gemm::join<Out>, workspace, slices, g.m * g.n, g.add, g.c);
}

}  // namespace margay::cuda
