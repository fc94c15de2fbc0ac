#include "ops/matmul.h"
#include "engine/parallel.h"

#include "ops/cpu/parallel_gemm.h"

namespace margay::kernels {
namespace {

// Where the matrix with row-major number `index` over the axes of `shape` starts.
int64_t offset_of(int64_t index, const Shape& shape, const Shape& strides) {
  int64_t offset = 0;
  for (int axis = shape.ndim() - 1; axis >= 0; --axis) {
    offset += index % shape[axis] * strides[axis];
    index /= shape[axis];
  }
  return offset;
}

}  // namespace

template <class T>
void run(Cpu cpu, const Matmul<T>& p) {
  const int64_t count = p.batch.numel(), summed = p.summed.numel();
  const int64_t pieces = p.depth_pieces(p.batch, p.summed, p.m, p.n, p.k);
  if (pieces > 1) {
    return blas::split_k_gemm(cpu, pieces, p.a.transposed, p.b.transposed, p.m, p.n, p.k, p.a.data, p.a.ld, p.b.data,
                              p.b.ld, p.add, p.c, p.workspace, p.precision);
  }
  const blas::Blocks blocks(p.m, p.n, p.k * summed);
  parallel_for(cpu, count * blocks.count(), [&](int64_t piece) {
    const int64_t i = piece / blocks.count();
    const auto [row, column, rows, columns] = blocks[piece % blocks.count()];
    const T* const a = p.a.data + offset_of(i, p.batch, p.a.batch_strides) + row * (p.a.transposed ? 1 : p.a.ld);
    const T* const b = p.b.data + offset_of(i, p.batch, p.b.batch_strides) + column * (p.b.transposed ? p.b.ld : 1);
    T* const c = p.c + (i * p.m + row) * p.n + column;
    if (summed == 0) blas::gemm(false, false, rows, columns, 0, T(1), a, p.a.ld, b, p.b.ld, T(p.add), c, p.n);
    for (int64_t j = 0; j < summed; ++j) {
      blas::gemm(p.a.transposed, p.b.transposed, rows, columns, p.k, T(1),
                 a + offset_of(j, p.summed, p.a.summed_strides), p.a.ld, b + offset_of(j, p.summed, p.b.summed_strides),
                 p.b.ld, T(p.add || j > 0), c, p.n, blas::Rows::cached, p.precision);
    }
  });
}

template void run(Cpu, const Matmul<float>&);
template void run(Cpu, const Matmul<double>&);

}  // namespace margay::kernels
