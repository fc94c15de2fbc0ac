#include "ops/cuda/selective_scan_worker.cuh"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is the forward half of it

// workspace: the states between chunks, [B,E,N].
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(SelectiveScanFwd<T> a) {
  using A = acc_t<T>;
  __shared__ Tile<A> steps, outputs;
  const Worker<T> w(a.in);
  const ScanShape& s = a.in.shape;
  for (int64_t n = w.lane; n < s.states; n += kStates)
    if (w.has(n)) a.workspace[w.at(n)] = a.in.initial ? A(a.in.initial[w.at(n)]) : A(0);
  for (int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    const int64_t first = chunk * kChunk, tokens = w.tokens(chunk);
    w.prepare(first, tokens, steps, outputs);
    __syncthreads();
    for (int64_t group = 0; group < s.states; group += kStates) {
      const int64_t n = group + w.lane;
      const A before = w.has(n) ? a.workspace[w.at(n)] : A(0);
      if (a.checkpoints && w.has(n)) a.checkpoints[w.checkpoint(chunk, n)] = before;
      const A after = w.advance(before, n, first, tokens, steps, [&](int64_t t, A, A h) {
        const A sum = sum_states(h * w.element(a.in.C, first + t, n));
        if (w.lane == 0) outputs[t][w.local] += sum;
      });
      if (w.has(n)) a.workspace[w.at(n)] = after;
    }
    __syncthreads();
    w.for_tile(tokens, [&](int64_t t, int c, int64_t own, bool exists) {
      if (!exists) return;
      A y = outputs[t][c];
      if (a.in.z.data) y *= functors::Silu::value(A(row_of(a.in.z, w.batch, first + t)[own]));
      a.y[(w.batch * s.length + first + t) * s.channels + own] = T(y);
    });
    __syncthreads();
  }
  for (int64_t n = w.lane; n < s.states; n += kStates)
    if (w.has(n)) a.final[w.at(n)] = T(a.workspace[w.at(n)]);
}

}  // namespace

template <class T>
void run(Cuda cuda, const SelectiveScanFwd<T>& a) {
  if (grid_of(a.in.shape) > 0) cuda::launch(cuda, dim3(grid_of(a.in.shape)), dim3(cuda::kThreads), forward<T>, a);
}

template void run(Cuda, const SelectiveScanFwd<float>&);
template void run(Cuda, const SelectiveScanFwd<double>&);
template void run(Cuda, const SelectiveScanFwd<bf16>&);

}  // namespace margay::kernels
