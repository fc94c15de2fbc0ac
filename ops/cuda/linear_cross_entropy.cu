#include "ops/linear_cross_entropy.h"

#include "engine/cuda/reduce.cuh"
#include "engine/device.h"
#include "ops/cuda/gemm.cuh"
#include "ops/cuda/packed_rows.cuh"
#include "ops/cuda/rounded.cuh"

namespace margay::kernels {
namespace {

using cuda::MatrixView;

/// logits [rows, words] of rows of `hidden` and `weight`, `ld` apart.
template <class T, class F>
void make_logits(Cuda context, MatrixView<F> hidden, MatrixView<F> weight, int64_t d, int64_t rows, int64_t words,
                 T* logits, int64_t ld) {
  cuda::multiply(context, cuda::Gemm<F, T>{hidden, weight.transposed(), logits, rows, words, d, ld});
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

/// Logits of `rows` rows, `ld` apart, and of `words` words; `row` and `word` are the first of them.
template <class T>
struct LogitChunk {
  const T* data;
  int64_t ld, row, rows, word, words;
};

// Adds a chunk to the statistics of its rows, a team for each.
template <class Row, class T>
__global__ void __launch_bounds__(cuda::kThreads)
    add_words(LogitChunk<T> chunk, const int32_t* targets, const int32_t* rows, Statistics<T> all) {
  const Row team(chunk.words);
  for (int64_t local = team.first(); local < chunk.rows; local += team.step()) {
    const int64_t row = chunk.row + local;
    const T* const values = chunk.data + local * chunk.ld;
    const auto logits = team.load(values);
    const T max = team.template reduce<cuda::Largest>(
        T(-INFINITY), [](T logit) { return logit; }, logits);
    T sum(0);
    int64_t best = chunk.words;
    team.each([&](int p, auto j) {
      const auto pack = logits(p, j);
      for (int k = 0; k < Row::kPack; ++k) {
        sum += std::exp(pack[k] - max);
        if (best == chunk.words && pack[k] == max) best = j + k;
      }
    });
    sum = Row::Team::template reduce<cuda::Sum>(sum);
    best = Row::Team::template reduce<cuda::Smallest>(best);
    if (team.rank() > 0) continue;
    const int64_t target = targets[rows[row]] - chunk.word;
    if (target >= 0 && target < chunk.words) all.target_logit[row] = values[target];
    const bool first = chunk.word == 0;
    if (first || max > all.max[row]) all.best[row] = static_cast<int32_t>(best < chunk.words ? chunk.word + best : -1);
    const T before = first ? T(-INFINITY) : all.max[row], joint = cuda::Largest::combine(before, max);
    all.sum[row] = (first ? T(0) : all.sum[row] * std::exp(before - joint)) + sum * std::exp(max - joint);
    all.max[row] = joint;
  }
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

// gradients = (softmax - onehot) * weight of the row, in place of the logits or as packed as they are; a team per row.
template <class Row, class T, class F>
__global__ void __launch_bounds__(cuda::kThreads)
    logit_gradients(LinearCrossEntropyBwd<T> a, LogitChunk<T> chunk, F* gradients) {
  const Row team(chunk.words);
  for (int64_t local = team.first(); local < chunk.rows; local += team.step()) {
    const int64_t row = chunk.row + local, place = a.rows[row], target = a.targets[place] - chunk.word;
    const T weight = (a.dloss ? *a.dloss / T(a.n) : T(0)) + (a.dnll ? a.dnll[place] : T(0));
    const T max = a.row_max[row], scale = a.inv_sum[row] * weight;
    const auto logits = team.stream(chunk.data + local * chunk.ld);
    team.each([&](int p, auto j) {
      const auto pack = logits(p, j);
      cuda::Pack<F, Row::kPack> gradient;
      for (int k = 0; k < Row::kPack; ++k)
        gradient[k] = F(std::exp(pack[k] - max) * scale - (j + k == target ? weight : T(0)));
      cuda::store(gradients + local * chunk.ld + j, gradient);
    });
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

template <class T, class F>
void forward(Cuda context, const LinearCrossEntropyFwd<T>& a, MatrixView<F> hidden, MatrixView<F> weight) {
  const LossChunks chunk(a.n, a.V);
  T *const logits = a.workspace, *const statistics = logits + chunk.size();
  const Statistics<T> all{statistics, statistics + a.n, statistics + 2 * a.n, a.best};
  for (int64_t row = 0; row < a.n; row += chunk.rows) {
    const int64_t rows = std::min(chunk.rows, a.n - row);
    for (int64_t word = 0; word < a.V; word += chunk.words) {
      const int64_t words = std::min(chunk.words, a.V - word);
      make_logits(context, hidden.from_row(row), weight.from_row(word), a.d, rows, words, logits, chunk.ld);
      const LogitChunk<T> made{logits, chunk.ld, row, rows, word, words};
      cuda::with_packed_rows<T>(
          words, [&]<class Row>() { Row::launch(context, rows, add_words<Row, T>, made, a.targets, a.rows, all); },
          logits);
    }
  }
  cuda::launch_elements(context, a.n, finish<T>, a, all);
}

/// `gradients` has room for a chunk; it may be where the logits are.
template <class T, class F>
void backward(Cuda context, const LinearCrossEntropyBwd<T>& a, MatrixView<F> hidden, MatrixView<F> weight,
              F* gradients) {
  const LossChunks chunk(a.n, a.V);
  T *const logits = a.workspace, *const dhidden = logits + chunk.size();
  for (int64_t row = 0; row < a.n; row += chunk.rows) {
    const int64_t rows = std::min(chunk.rows, a.n - row);
    const MatrixView<F> inputs = hidden.from_row(row), dlogits{gradients, chunk.ld, 1};
    for (int64_t word = 0; word < a.V; word += chunk.words) {
      const int64_t words = std::min(chunk.words, a.V - word);
      const MatrixView<F> outputs = weight.from_row(word);
      make_logits(context, inputs, outputs, a.d, rows, words, logits, chunk.ld);
      const LogitChunk<T> made{logits, chunk.ld, row, rows, word, words};
      cuda::with_packed_rows<T>(
          words, [&]<class Row>() { Row::launch(context, rows, logit_gradients<Row, T, F>, a, made, gradients); },
          logits);
      if (a.dh) cuda::multiply(context, cuda::Gemm<F, T>{dlogits, outputs, dhidden, rows, a.d, words, a.d, word > 0});
      if (a.dweight) {
        const bool add = a.add_dweight || row > 0;
        cuda::multiply(context, cuda::Gemm<F, T>{dlogits.transposed(), inputs, a.dweight + word * a.d, words, a.d, rows,
                                                 a.d, add});
      }
    }
    if (a.dh) cuda::launch_elements(context, rows * a.d, scatter<T>, dhidden, a.rows, a.dh, row, rows, a.d);
  }
}

}  // namespace

template <class T>
void run(Cuda context, const LinearCrossEntropyFwd<T>& a) {
  cuda::launch_elements(context, a.R, start<T>, a.nll, a.argmax, a.R);
  if (a.hidden != a.h) cuda::launch_elements(context, a.n * a.d, gather<T>, a.h, a.rows, a.hidden, a.n, a.d);
  cuda::with_factors(
      context, cuda::rounds<T>(a.precision, a.n, a.V, a.d),
      [&]<class F>(MatrixView<F> hidden, MatrixView<F> weight) { forward(context, a, hidden, weight); },
      cuda::Matrix<T>{{a.hidden, a.d, 1}, a.n, a.d}, cuda::Matrix<T>{{a.weight, a.d, 1}, a.V, a.d});
  cuda::launch(context, dim3(1), dim3(cuda::kThreads), mean_loss<T>, a.nll, a.rows, a.n, a.loss);
}

template <class T>
void run(Cuda context, const LinearCrossEntropyBwd<T>& a) {
  if (a.dh) cuda::launch_elements(context, a.R * a.d, clear<T>, a.dh, a.R * a.d);
  if (a.n == 0 && a.dweight && !a.add_dweight)
    cuda::launch_elements(context, a.V * a.d, clear<T>, a.dweight, a.V * a.d);
  const auto products = [&]<class F>(MatrixView<F> hidden, MatrixView<F> weight) {
    if constexpr (std::is_same_v<F, T>) {
      backward(context, a, hidden, weight, a.workspace);
    } else {
      const Scratch gradients(backend(Device{DeviceType::cuda, context.index}).allocator(),
                              static_cast<size_t>(LossChunks(a.n, a.V).size()) * sizeof(F));
      backward(context, a, hidden, weight, static_cast<F*>(gradients.data()));
    }
  };
  cuda::with_factors(context, cuda::rounds<T>(a.precision, a.n, a.V, a.d), products,
                     cuda::Matrix<T>{{a.hidden, a.d, 1}, a.n, a.d}, cuda::Matrix<T>{{a.weight, a.d, 1}, a.V, a.d});
}

template void run(Cuda, const LinearCrossEntropyFwd<float>&);
template void run(Cuda, const LinearCrossEntropyFwd<double>&);
template void run(Cuda, const LinearCrossEntropyBwd<float>&);
template void run(Cuda, const LinearCrossEntropyBwd<double>&);

}  // namespace margay::kernels
