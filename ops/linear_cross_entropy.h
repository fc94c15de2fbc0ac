#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/cross_entropy.h"
#include "ops/precision.h"

namespace margay {

/// loss, nll and argmax, as of cross_entropy().
using LinearCrossEntropy = CrossEntropy;

/// cross_entropy(h weight^T, targets) without a tensor of logits: h [R, d], weight [V, d], targets i32 [R], -100 =
/// ignored. Ignored rows cost nothing; the others see the vocabulary in chunks, with a running maximum and sum
/// (Milakov & Gimelshein 2018, arXiv:1805.02867), and the backward pass makes each chunk's logits again. Only where all
/// of them take 128 MiB or less does the CPU keep their exponentials instead. Throws OpError for other targets outside
/// [0, V) and sizes that do not fit.
LinearCrossEntropy linear_cross_entropy(const Tensor& h, const Tensor& weight, const Tensor& targets);

namespace kernels {

/// How the [n, V] logits are cut, by their shape only. Groups are independent pieces of work: of words, whose parts of
/// dh are then summed, or where the rows outnumber the words of rows, whose parts of dweight are summed. Inside a group
/// logits are made in blocks of kRows x kWords.
struct LossPieces {
  static constexpr int64_t kRows = 256, kWords = 256;
  int64_t row_groups = 1, word_groups = 1, rows_per_round = 0;

  LossPieces(int64_t n, int64_t V, int64_t d) : rows_per_round(n) {
    constexpr int64_t most = 16, fewest_rows = 128, fewest_words = 128, largest_workspace = 1 << 22;  // elements
    if (n >= V && 8 * V * d <= largest_workspace) {
      row_groups = std::clamp<int64_t>(n / fewest_rows, 1, most);
      while (row_groups * V * d > largest_workspace) row_groups /= 2;
    } else {
      word_groups = std::clamp<int64_t>(V / fewest_words, 1, most);
      const int64_t rows = largest_workspace / std::max<int64_t>(1, word_groups * d) / kRows * kRows;
      rows_per_round = std::clamp<int64_t>(rows, std::min(n, kRows), n);
    }
  }
  int64_t count() const { return row_groups * word_groups; }
  /// Blocks side by side in a group of words, at most.
  int64_t chunks(int64_t V) const { return ((V + word_groups - 1) / word_groups + kWords - 1) / kWords; }
};

/// What the CPU keeps for the backward pass, unless it is too much: of each logit the exponential of its distance to
/// the largest of its row that its group had met after its chunk, [n, V]; and that largest one, [word groups * chunks,
/// n].
template <class T>
struct KeptExponentials {
  T *values = nullptr, *tops = nullptr;

  static int64_t size(DeviceType device, int64_t n, int64_t V, int64_t d) {
    constexpr int64_t most_bytes = 1 << 27;
    if (device != DeviceType::cpu || n * V * static_cast<int64_t>(sizeof(T)) > most_bytes) return 0;
    const LossPieces pieces(n, V, d);
    return n * V + pieces.word_groups * pieces.chunks(V) * n;
  }
};

/// How a GPU cuts them: into chunks as large as a workspace of 64 MiB in f32 holds, so that each fills it with
/// products.
struct LossChunks {
  int64_t rows, words, ld;  // ld: distance of rows

  LossChunks(int64_t n, int64_t V) {
    constexpr int64_t most = 1 << 24, fewest_words = 4096, alignment = 8;
    words = std::max(fewest_words, most / std::max<int64_t>(n, 1) / alignment * alignment);
    words = std::min(V, words);
    ld = (words + alignment - 1) / alignment * alignment;
    rows = std::min(n, std::max<int64_t>(1, most / std::max<int64_t>(ld, 1)));
  }
  int64_t size() const { return rows * ld; }
};

/// `hidden` [n, d] receives the labelled rows of h, which `rows` [n] lists; it is h itself if all rows are labelled.
/// row_max and inv_sum [n] as in CrossEntropyFwd.
template <class T>
struct LinearCrossEntropyFwd {
  using dtypes = Types<float, double>;
  const T *h, *weight;
  const int32_t *targets, *rows;
  T *hidden, *loss, *nll, *row_max, *inv_sum;
  int32_t* argmax;
  T* workspace;
  int32_t* best;  // [word groups, n]
  KeptExponentials<T> kept;
  int64_t R, V, d, n;
  Precision precision = Precision::f32;  // of products of floats

  /// On a GPU all words are one group.
  static int64_t best_size(DeviceType device, int64_t n, int64_t V, int64_t d) {
    return device == DeviceType::cuda ? n : LossPieces(n, V, d).word_groups * n;
  }
  /// Elements: maximum and sum of each row in each group of words, the rows' target logits, a block for each group or
  /// a chunk.
  static int64_t workspace_size(DeviceType device, int64_t n, int64_t V, int64_t d) {
    if (device == DeviceType::cuda) return 3 * n + LossChunks(n, V).size();
    const LossPieces pieces(n, V, d);
    return (2 * pieces.word_groups + 1) * n + pieces.count() * LossPieces::kRows * LossPieces::kWords;
  }
};
/// dloss or dnll may be null, not both; dh [R, d] or dweight may be null, which is then not wanted. dweight is added to
/// what is there where `add_dweight`.
template <class T>
struct LinearCrossEntropyBwd {
  using dtypes = Types<float, double>;
  const T *hidden, *weight;
  const int32_t *targets, *rows;
  const T *row_max, *inv_sum, *dloss, *dnll;
  T *dh, *dweight;
  bool add_dweight;
  T* workspace;
  KeptExponentials<T> kept;
  int64_t R, V, d, n;
  Precision precision = Precision::f32;

  /// Elements: each group's block, its part of a round's dh and, with several groups of rows, of dweight; or a chunk
  /// and its rows' dh.
  static int64_t workspace_size(DeviceType device, int64_t n, int64_t V, int64_t d) {
    if (device == DeviceType::cuda) return LossChunks(n, V).size() + LossChunks(n, V).rows * d;
    const LossPieces p(n, V, d);
    const int64_t dweights = p.row_groups > 1 ? p.row_groups * V * d : 0;
    return p.count() * LossPieces::kRows * LossPieces::kWords + p.word_groups * p.rows_per_round * d + dweights;
  }
};
template <class T>
void run(Cpu, const LinearCrossEntropyFwd<T>&);
template <class T>
void run(Cuda, const LinearCrossEntropyFwd<T>&);
template <class T>
void run(Cpu, const LinearCrossEntropyBwd<T>&);
template <class T>
void run(Cuda, const LinearCrossEntropyBwd<T>&);

}  // namespace kernels
}  // namespace margay
