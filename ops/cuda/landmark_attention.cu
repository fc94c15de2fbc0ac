#include "ops/cuda/landmark_row.cuh"

namespace margay::kernels {
namespace {

using namespace landmark;  // NOLINT: this file is the forward half of it

/// Values weighed by exp(score - maximum), over the keys met so far.
template <class A, int R>
struct Softmax {
  static constexpr A kLowest = std::numeric_limits<A>::lowest();
  A maximum = kLowest, sum = 0;
  WarpRow<A, R> values;

  /// Keys begin ... end - 1.
  template <class T>
  __device__ Softmax(const Query<T>& query, const WarpRow<A, R>& q, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const A score = query.scale * q.dot(query.template k<R>(j)), top = score > maximum ? score : maximum;
      const A keep = std::exp(maximum - top), weight = std::exp(score - top);
      maximum = top;
      sum = sum * keep + weight;
      values.scale(keep);
      values.add(weight * query.factor(j), query.template v<R>(j));
    }
  }
  /// Takes a block in: `logit` stands for all of it, and its values are divided by `divisor`.
  __device__ void merge(const Softmax& block, A logit, A mass, A divisor) {
    const A top = logit > maximum ? logit : maximum;
    const A keep = std::exp(maximum - top), weight = std::exp(logit - top);
    maximum = top;
    sum = sum * keep + weight * mass;
    values.scale(keep);
    values.add(weight / divisor, block.values);
  }
};

// A warp per query.
template <class T, int R>
__global__ void __launch_bounds__(cuda::kThreads) forward(LandmarkAttentionFwd<T> a) {
  using A = acc_t<T>;
  const LandmarkShape& s = a.shape;
  for (int64_t index = blockIdx.x * kWarps + threadIdx.x / cuda::kWarp; index < s.B * s.H * s.Lq;
       index += gridDim.x * kWarps) {
    const Query<T> query(a, index);
    const WarpRow<A, R> q = query.template q<R>(), landmark_q = query.template landmark_q<R>();
    Softmax<A, R> softmax(query, q, query.local, query.position + 1);
    for (int64_t slot = 0; slot < query.slots(); ++slot) {
      const int64_t m = query.block(slot);
      if (m < 0) continue;
      const Softmax<A, R> block(query, q, m * s.W, (m + 1) * s.W);
      const A gate = query.gate(landmark_q, m);
      if (a.gate == LandmarkGate::grouped) {
        softmax.merge(block, gate, A(1), block.sum);
      } else {
        softmax.merge(block, block.maximum + gate, block.sum, A(1));
      }
    }
    softmax.values.scale(1 / softmax.sum);
    softmax.values.store(row_of(a.y, a.y_strides, s.H, query.head, query.i), s.dh);
    if (a.lse && threadIdx.x % cuda::kWarp == 0) a.lse[index] = softmax.maximum + std::log(softmax.sum);
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const LandmarkAttentionFwd<T>& a) {
  const int64_t threads = a.shape.B * a.shape.H * a.shape.Lq * cuda::kWarp;
  with_warp_rows("landmark_attention", a.shape.dh,
                 [&]<int R>() { cuda::launch_elements(cuda, threads, forward<T, R>, a); });
}

template void run(Cuda, const LandmarkAttentionFwd<float>&);
template void run(Cuda, const LandmarkAttentionFwd<double>&);
template void run(Cuda, const LandmarkAttentionFwd<bf16>&);

}  // namespace margay::kernels
