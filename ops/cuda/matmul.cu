#include "ops/matmul.h"

#include "ops/cuda/gemm.cuh"

namespace margay::kernels {
namespace {

template <class T>
cuda::MatrixView<T> view_of(const typename Matmul<T>::Factor& factor) {
  return factor.transposed ? cuda::MatrixView<T>{factor.data, 1, factor.ld}
                           : cuda::MatrixView<T>{factor.data, factor.ld, 1};
}

}  // namespace

template <class T>
void run(Cuda context, const Matmul<T>& a) {
  cuda::Gemm<T> g{view_of<T>(a.a), view_of<T>(a.b), a.c, a.m, a.n, a.k, a.n, a.add};
  g.batch = cuda::Nest<2>(StridedLoop<2>(a.batch, {a.a.batch_strides, a.b.batch_strides}));
  g.summed = cuda::Nest<2>(StridedLoop<2>(a.summed, {a.a.summed_strides, a.b.summed_strides}));
  g.c_batch = a.m * a.n;
  cuda::multiply_sliced(context, g, a.depth_pieces(a.batch, a.summed, a.m, a.n, a.k), a.workspace);
}

template void run(Cuda, const Matmul<float>&);
template void run(Cuda, const Matmul<double>&);
template void run(Cuda, const Matmul<bf16>&);

}  // namespace margay::kernels
