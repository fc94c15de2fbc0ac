#include "ops/linear_cross_entropy.h"

#include "engine/cuda/reduce.cuh"
#include "ops/cuda/gemm.cuh"

namespace margay::kernels {
namespace {

/// The logits [n, V] are made in chunks that fit the workspace of the CPU's blocks.
struct Chunks {
  int64_t rows, words;

  Chunks(int64_t n, int64_t V, int64_t d) {
    const int64_t room = LossPieces(n, V, d).count() * LossPieces::kRows * LossPieces::kWords;
    words = std::min(V, std::max(LossPieces::kWords, room / std::max<int64_t>(n, 1)));
    rows = std::min(n, room / std::max<int64_t>(words, 1));
  }
};

template <class T>
void make_logits(Cuda context, const T* hidden, const T* weight, int64_t d, int64_t rows, int64_t words, T* logits) {
  cuda::multiply(context, cuda::Gemm<T>{{hidden, d, 1}, {weight, 1, d}, logits, rows, words, d, words});
}

template <class T>
__global__ void start(T* nll, int32_t* argmax, int64_t R) {
  for (int64_t i = cuda::first_index(); i < R; i += cuda::index_step()) {
    nll[i] = T(0);
    argmax[i] = -1;
  }
}

template <class T>
__global__ void gather(const T* h, const int32_t* rows, T* hidden, int64_t n, int64_t d) {
  for (int64_t i = cuda::first_index(); i < n * d; i += cuda::index_step()) hidden[i] = h[rows[i / d] * d + i % d];
}

/// What a row has seen so far: maximum, sum relative to it, the first place of the maximum, the target's logit.
template <class T>
struct Statistics {
  T *max, *sum, *target_logit;
  int32_t* best;
};

/// Adds words first ... first + words to the statistics of row0 ...: a warp for each row.
template <class T>
__global__ void add_words(const T* logits, const int32_t* targets, const int32_t* rows, Statistics<T> all, int64_t row0,
                          int64_t count, int64_t first, int64_t words) {
  const int64_t local = int64_t{blockIdx.x} * blockDim.y + threadIdx.y, row = row0 + local;
  if (local >= count) return;  // the whole warp
  const T* const values = logits + local * words;
  T max = -INFINITY;
  for (int64_t j = threadIdx.x; j < words; j += cuda::kWarp) max = cuda::Largest::combine(max, values[j]);
  max = cuda::warp_reduce<cuda::Largest>(max);
  T sum(0);
  int64_t best = words;
  for (int64_t j = threadIdx.x; j < words; j += cuda::kWarp) {
    sum += exp(values[j] - max);
    if (best == words && values[j] == max) best = j;
  }
  sum = cuda::warp_sum(sum);
  for (int distance = cuda::kWarp / 2; distance > 0; distance /= 2)
    best = min(best, __shfl_down_sync(0xffffffffu, best, distance));
  if (threadIdx.x != 0) return;
  const int64_t target = targets[rows[row]];
  if (target >= first && target < first + words) all.target_logit[row] = values[target - first];
  if (first == 0 || max > all.max[row]) all.best[row] = static_cast<int32_t>(best < words ? first + best : -1);
  const T before = first == 0 ? T(-INFINITY) : all.max[row], joint = cuda::Largest::combine(before, max);
  all.sum[row] = (first == 0 ? T(0) : all.sum[row] * exp(before - joint)) + sum * exp(max - joint);
  all.max[row] = joint;
}

template <class T>
__global__ void finish(LinearCrossEntropyFwd<T> a, Statistics<T> all) {
  for (int64_t i = cuda::first_index(); i < a.n; i += cuda::index_step()) {
    a.row_max[i] = all.max[i];
    a.inv_sum[i] = T(1) / all.sum[i];
    a.argmax[a.rows[i]] = all.best[i];
    a.nll[a.rows[i]] = all.max[i] - all.target_logit[i] + log(all.sum[i]);
  }
}

/// One block: the mean of nll over the labelled rows, 0 over none.
template <class T>
__global__ void mean_loss(const T* nll, const int32_t* rows, int64_t n, T* loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += cuda::kThreads) sum += static_cast<double>(nll[rows[i]]);
  sum = cuda::block_reduce<cuda::Sum>(sum);
  if (threadIdx.x == 0) *loss = n > 0 ? T(sum / static_cast<double>(n)) : T(0);
}

/// logits -> (softmax - onehot) * weight of the row, for rows row0 ... and words first ...
template <class T>
__global__ void logit_gradients(LinearCrossEntropyBwd<T> a, T* logits, int64_t row0, int64_t count, int64_t first,
                                int64_t words) {
  for (int64_t e = cuda::first_index(); e < count * words; e += cuda::index_step()) {
    const int64_t row = row0 + e / words, word = first + e % words, place = a.rows[row];
    const T weight = (a.dloss ? *a.dloss / T(a.n) : T(0)) + (a.dnll ? a.dnll[place] : T(0));
    logits[e] =
        exp(logits[e] - a.row_max[row]) * (a.inv_sum[row] * weight) - (word == a.targets[place] ? weight : T(0));
  }
}

template <class T>
__global__ void scatter(const T* dhidden, const int32_t* rows, T* dh, int64_t row0, int64_t count, int64_t d) {
  for (int64_t i = cuda::first_index(); i < count * d; i += cuda::index_step())
    dh[rows[row0 + i / d] * d + i % d] = dhidden[i];
}

template <class T>
__global__ void clear(T* to, int64_t n) {
  for (int64_t i = cuda::first_index(); i < n; i += cuda::index_step()) to[i] = T(0);
}

}  // namespace

template <class T>
void run(Cuda context, const LinearCrossEntropyFwd<T>& a) {
  const LossPieces pieces(a.n, a.V, a.d);
  const Statistics<T> all{a.workspace, a.workspace + pieces.word_groups * a.n,
                          a.workspace + 2 * pieces.word_groups * a.n, a.best};
  T* const logits = all.target_logit + a.n;
  cuda::launch_elements(context, a.R, start<T>, a.nll, a.argmax, a.R);
  if (a.hidden != a.h) cuda::launch_elements(context, a.n * a.d, gather<T>, a.h, a.rows, a.hidden, a.n, a.d);
  const Chunks chunk(a.n, a.V, a.d);
  const dim3 block(cuda::kWarp, cuda::kThreads / cuda::kWarp);
  for (int64_t row = 0; row < a.n; row += chunk.rows) {
    const int64_t rows = std::min(chunk.rows, a.n - row);
    for (int64_t word = 0; word < a.V; word += chunk.words) {
      const int64_t words = std::min(chunk.words, a.V - word);
      make_logits(context, a.hidden + row * a.d, a.weight + word * a.d, a.d, rows, words, logits);
      cuda::launch(context, dim3(static_cast<unsigned>((rows + block.y - 1) / block.y)), block, add_words<T>, logits,
                   a.targets, a.rows, all, row, rows, word, words);
    }
  }
  cuda::launch_elements(context, a.n, finish<T>, a, all);
  cuda::launch(context, dim3(1), dim3(cuda::kThreads), mean_loss<T>, a.nll, a.rows, a.n, a.loss);
}

template <class T>
void run(Cuda context, const LinearCrossEntropyBwd<T>& a) {
  const LossPieces pieces(a.n, a.V, a.d);
  const Chunks chunk(a.n, a.V, a.d);
  T* const logits = a.workspace;
  T* const dhidden = logits + pieces.count() * LossPieces::kRows * LossPieces::kWords;
  const int64_t most_rows = std::min(chunk.rows, pieces.rows_per_round);
  if (a.dh) cuda::launch_elements(context, a.R * a.d, clear<T>, a.dh, a.R * a.d);
  if (a.n == 0 && a.dweight && !a.add_dweight)
    cuda::launch_elements(context, a.V * a.d, clear<T>, a.dweight, a.V * a.d);
  for (int64_t row = 0; row < a.n; row += most_rows) {
    const int64_t rows = std::min(most_rows, a.n - row);
    for (int64_t word = 0; word < a.V; word += chunk.words) {
      const int64_t words = std::min(chunk.words, a.V - word);
      const T* const weight = a.weight + word * a.d;
      make_logits(context, a.hidden + row * a.d, weight, a.d, rows, words, logits);
      cuda::launch_elements(context, rows * words, logit_gradients<T>, a, logits, row, rows, word, words);
      if (a.dh) {
        cuda::multiply(context,
                       cuda::Gemm<T>{{logits, words, 1}, {weight, a.d, 1}, dhidden, rows, a.d, words, a.d, word > 0});
      }
      if (a.dweight) {
        cuda::multiply(context, cuda::Gemm<T>{{logits, 1, words},
                                              {a.hidden + row * a.d, a.d, 1},
                                              a.dweight + word * a.d,
                                              words,
                                              a.d,
                                              rows,
                                              a.d,
                                              a.add_dweight || row > 0});
      }
    }
    if (a.dh) cuda::launch_elements(context, rows * a.d, scatter<T>, dhidden, a.rows, a.dh, row, rows, a.d);
  }
}

template void run(Cuda, const LinearCrossEntropyFwd<float>&);
template void run(Cuda, const LinearCrossEntropyFwd<double>&);
template void run(Cuda, const LinearCrossEntropyBwd<float>&);
template void run(Cuda, const LinearCrossEntropyBwd<double>&);

}  // namespace margay::kernels
