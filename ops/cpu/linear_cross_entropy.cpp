#include "ops/linear_cross_entropy.h"
#include "engine/parallel.h"

#include <cmath>

#include "ops/cpu/parallel_gemm.h"
#include "ops/cpu/softmax_loss.h"

namespace margay::kernels {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Group `index` of `groups` equal parts of [0, count).
Range group_of(int64_t index, int64_t groups, int64_t count) {
  return {index * count / groups, (index + 1) * count / groups};
}

// Calls body for the stretches of `step` (the last may be shorter) that a range consists of.
template <class Body>
void for_stretches(Range range, int64_t step, const Body& body) {
  for (int64_t begin = range.begin; begin < range.end; begin += step)
    body(Range{begin, std::min(range.end, begin + step)});
}

// logits [rows, words], rows kWords apart.
template <class T>
void make_logits(const T* hidden, const T* weight, int64_t d, Range rows, Range words, Precision precision, T* logits) {
  blas::gemm(false, true, rows.size(), words.size(), d, T(1), hidden + rows.begin * d, d, weight + words.begin * d, d,
             T(0), logits, LossPieces::kWords, blas::Rows::cached, precision);
}

// The tops of what is kept of one group of words.
template <class T>
struct Tops {
  T* first;
  int64_t n;
  Tops(const KeptExponentials<T>& kept, const LossPieces& pieces, int64_t word_group, int64_t V, int64_t n)
      : first(kept.tops + word_group * pieces.chunks(V) * n), n(n) {}
  // [n] of the chunk that begins `words` behind the group.
  T* of(int64_t words) const { return first + words / LossPieces::kWords * n; }
};

// Parts of the forward workspace.
template <class T>
struct ForwardParts {
  T *max, *sum;      // [word groups, n]
  T* target_logits;  // [n]
  T* blocks;         // [groups, kRows, kWords]
  ForwardParts(const LinearCrossEntropyFwd<T>& a, const LossPieces& pieces)
      : max(a.workspace),
        sum(max + pieces.word_groups * a.n),
        target_logits(sum + pieces.word_groups * a.n),
        blocks(target_logits + a.n) {}
};

// Statistics of a group's rows over its words.
template <class T>
void forward_group(const LinearCrossEntropyFwd<T>& a, const ForwardParts<T>& parts, Range rows, Range words,
                   int64_t word_group, const Tops<T>& tops, T* logits) {
  for_stretches(rows, LossPieces::kRows, [&](Range block) {
    SoftmaxStats<T> stats[LossPieces::kRows];
    for_stretches(words, LossPieces::kWords, [&](Range chunk) {
      make_logits(a.hidden, a.weight, a.d, block, chunk, a.precision, logits);
      T* const top = a.kept.values ? tops.of(chunk.begin - words.begin) : nullptr;
      for (int64_t i = block.begin; i < block.end; ++i) {
        const T* const row = logits + (i - block.begin) * LossPieces::kWords;
        SoftmaxStats<T>& s = stats[i - block.begin];
        s.add(row, chunk.size(), chunk.begin, top ? a.kept.values + i * a.V + chunk.begin : nullptr);
        if (top) top[i] = s.max;
        const int64_t target = a.targets[a.rows[i]];
        if (target >= chunk.begin && target < chunk.end) parts.target_logits[i] = row[target - chunk.begin];
      }
    });
    for (int64_t i = block.begin; i < block.end; ++i) {
      const SoftmaxStats<T>& s = stats[i - block.begin];
      parts.max[word_group * a.n + i] = s.max;
      parts.sum[word_group * a.n + i] = s.sum;
      a.best[word_group * a.n + i] = s.argmax;
    }
  });
}

// Joins the groups of words and gives the results of rows begin ... end.
template <class T>
void finish_rows(const LinearCrossEntropyFwd<T>& a, const ForwardParts<T>& parts, int64_t groups, int64_t begin,
                 int64_t end) {
  using Vec = simd::Vec<T>;
  for (int64_t i = begin; i < end; i += Vec::size) {
    const int64_t lanes = end - i;
    Vec max = Vec::load(parts.max + i, lanes), sum(T(0));
    for (int64_t g = 1; g < groups; ++g) max = simd::max(max, Vec::load(parts.max + g * a.n + i, lanes));
    for (int64_t g = 0; g < groups; ++g)
      sum += Vec::load(parts.sum + g * a.n + i, lanes) * simd::exp(Vec::load(parts.max + g * a.n + i, lanes) - max);
    max.store(a.row_max + i, lanes);
    (Vec(T(1)) / sum).store(a.inv_sum + i, lanes);
    T sums[Vec::size];
    sum.store(sums);
    for (int64_t j = i; j < std::min(end, i + Vec::size); ++j) {
      int64_t best = 0;
      for (int64_t g = 1; g < groups; ++g)
        if (parts.max[g * a.n + j] > parts.max[best * a.n + j]) best = g;
      a.argmax[a.rows[j]] = a.best[best * a.n + j];
      a.nll[a.rows[j]] = a.row_max[j] - parts.target_logits[j] + std::log(sums[j - i]);
    }
  }
}

// Parts of the backward workspace.
template <class T>
struct BackwardParts {
  T* blocks;    // [groups, kRows, kWords]
  T* dhidden;   // [word groups, rows of a round, d]
  T* dweights;  // [row groups, V, d] if there are several
  BackwardParts(const LinearCrossEntropyBwd<T>& a, const LossPieces& pieces)
      : blocks(a.workspace),
        dhidden(blocks + pieces.count() * LossPieces::kRows * LossPieces::kWords),
        dweights(dhidden + pieces.word_groups * pieces.rows_per_round * a.d) {}
};

// (softmax - onehot) * weight of the row, in place of the logits or from what was kept of them with these tops.
template <class T>
void logit_gradients(const LinearCrossEntropyBwd<T>& a, Range rows, Range words, const T* tops, T* logits) {
  using Vec = simd::Vec<T>;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    T* const row = logits + (i - rows.begin) * LossPieces::kWords;
    const T weight = row_weight(a.dloss, a.dnll, a.n, a.rows[i]), scale = a.inv_sum[i] * weight;
    if (tops) {
      const T* const kept = a.kept.values + i * a.V + words.begin;
      const Vec factor(std::exp(tops[i] - a.row_max[i]) * scale);
      for (int64_t j = 0; j < words.size(); j += Vec::size)
        (Vec::load(kept + j, words.size() - j) * factor).store(row + j);  // blocks have room for whole vectors
    } else {
      const Vec max(a.row_max[i]), factor(scale);
      for (int64_t j = 0; j < words.size(); j += Vec::size)
        (simd::exp(Vec::load(row + j) - max) * factor).store(row + j);
    }
    const int64_t target = a.targets[a.rows[i]];
    if (target >= words.begin && target < words.end) row[target - words.begin] -= weight;
  }
}

// With P = (softmax - onehot) * weight: dhidden = P weight over the group's words, dweight += P^T hidden over its rows.
template <class T>
void backward_group(const LinearCrossEntropyBwd<T>& a, Range rows, Range words, const Tops<T>& tops, T* logits,
                    T* dhidden, T* dweight, bool add_dweight) {
  constexpr int64_t ld = LossPieces::kWords;
  for_stretches(rows, LossPieces::kRows, [&](Range block) {
    for_stretches(words, LossPieces::kWords, [&](Range chunk) {
      const bool kept = a.kept.values != nullptr;
      if (!kept) make_logits(a.hidden, a.weight, a.d, block, chunk, a.precision, logits);
      logit_gradients(a, block, chunk, kept ? tops.of(chunk.begin - words.begin) : nullptr, logits);
      if (a.dh) {
        const bool first = chunk.begin == words.begin;
        blas::gemm(false, false, block.size(), a.d, chunk.size(), T(1), logits, ld, a.weight + chunk.begin * a.d, a.d,
                   T(!first), dhidden + (block.begin - rows.begin) * a.d, a.d, blas::Rows::cached, a.precision);
      }
      if (a.dweight) {
        const bool first = block.begin == rows.begin && !add_dweight;
        blas::gemm(true, false, chunk.size(), a.d, block.size(), T(1), logits, ld, a.hidden + block.begin * a.d, a.d,
                   T(!first), dweight + chunk.begin * a.d, a.d, blas::Rows::cached, a.precision);
      }
    });
  });
}

// dh of a round's rows: the sum of what the groups of words gave.
template <class T>
void join_dhidden(Cpu cpu, const LinearCrossEntropyBwd<T>& a, const LossPieces& pieces, const T* dhidden, Range round) {
  LabelledRows{a.rows, a.n, a.R}.fill(cpu, round.begin, round.end, a.dh, a.d, [&](int64_t i) {
    T* const to = a.dh + a.rows[i] * a.d;
    std::copy_n(dhidden + (i - round.begin) * a.d, a.d, to);
    for (int64_t g = 1; g < pieces.word_groups; ++g) {
      const T* const from = dhidden + (g * pieces.rows_per_round + i - round.begin) * a.d;
      for (int64_t j = 0; j < a.d; ++j) to[j] += from[j];
    }
  });
}

}  // namespace

template <class T>
void run(Cpu cpu, const LinearCrossEntropyFwd<T>& a) {
  const LossPieces pieces(a.n, a.V, a.d);
  const ForwardParts<T> parts(a, pieces);
  std::fill_n(a.argmax, a.R, -1);
  std::fill_n(a.nll, a.R, T(0));
  if (a.hidden != a.h) {
    parallel_ranges(cpu, a.n, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(a.h + a.rows[i] * a.d, a.d, a.hidden + i * a.d);
    });
  }
  parallel_for(cpu, pieces.count(), [&](int64_t piece) {
    const int64_t word_group = piece % pieces.word_groups;
    forward_group(a, parts, group_of(piece / pieces.word_groups, pieces.row_groups, a.n),
                  group_of(word_group, pieces.word_groups, a.V), word_group,
                  Tops<T>(a.kept, pieces, word_group, a.V, a.n),
                  parts.blocks + piece * LossPieces::kRows * LossPieces::kWords);
  });
  parallel_ranges(cpu, a.n, 1024,
                  [&](int64_t begin, int64_t end) { finish_rows(a, parts, pieces.word_groups, begin, end); });
  *a.loss = mean_loss(a.nll, a.rows, a.n);
}

template <class T>
void run(Cpu cpu, const LinearCrossEntropyBwd<T>& a) {
  const LossPieces pieces(a.n, a.V, a.d);
  const BackwardParts<T> parts(a, pieces);
  const int64_t round_rows = pieces.rows_per_round, size = a.V * a.d;
  if (a.n == 0 && a.dweight && !a.add_dweight) std::fill_n(a.dweight, size, T(0));
  if (a.n == 0 && a.dh) join_dhidden(cpu, a, pieces, parts.dhidden, {0, 0});
  for_stretches({0, a.n}, round_rows, [&](Range round) {
    parallel_for(cpu, pieces.count(), [&](int64_t piece) {
      const int64_t row_group = piece / pieces.word_groups, word_group = piece % pieces.word_groups;
      const Range group = group_of(row_group, pieces.row_groups, round.size());
      const bool own = pieces.row_groups > 1;
      backward_group(a, {round.begin + group.begin, round.begin + group.end},
                     group_of(word_group, pieces.word_groups, a.V), Tops<T>(a.kept, pieces, word_group, a.V, a.n),
                     parts.blocks + piece * LossPieces::kRows * LossPieces::kWords,
                     parts.dhidden + (word_group * round_rows + group.begin) * a.d,
                     own ? parts.dweights + row_group * size : a.dweight, !own && (a.add_dweight || round.begin > 0));
    });
    if (a.dh) join_dhidden(cpu, a, pieces, parts.dhidden, round);
  });
  if (a.dweight && pieces.row_groups > 1 && a.n > 0)
    blas::sum_parts(cpu, parts.dweights, pieces.row_groups, size, size, a.add_dweight, a.dweight);
}

template void run(Cpu, const LinearCrossEntropyFwd<float>&);
template void run(Cpu, const LinearCrossEntropyFwd<double>&);
template void run(Cpu, const LinearCrossEntropyBwd<float>&);
template void run(Cpu, const LinearCrossEntropyBwd<double>&);

}  // namespace margay::kernels
