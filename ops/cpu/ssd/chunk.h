#pragma once
#include "ops/cpu/blas.h"
#include "ops/cpu/simd.h"
#include "ops/cpu/workspace.h"
#include "ops/ssd.h"

// With the logarithm Lambda_t of the decay from the start of a chunk to token t, K_s = e^(Lambda_end - Lambda_s) step_s
// B_s, Q_t = e^(Lambda_t) C_t and the weights W_ts = (C_t . B_s) e^(Lambda_t - Lambda_s) step_s for s <= t:
//   Y = W X + Q H + D X,   H' = e^(Lambda_end) H + K^T X.
// Differences of Lambda are taken of pairs (value, rounding error): near the end of a long chunk Lambda is large, and
// its rounding error would be that of the weights.

namespace margay::kernels::ssd_scan {

template <class T>
inline constexpr int64_t kLanes = simd::Vec<T>::size;

// Triangular products are made in blocks of this many rows.
inline constexpr int64_t kRows = 32;

// One chunk of one sequence.
struct Chunk {
  int64_t batch, index, token, tokens;
};

// Calls body(begin, end) for blocks of rows.
template <class Body>
void for_rows(int64_t rows, const Body& body) {
  for (int64_t begin = 0; begin < rows; begin += kRows) body(begin, std::min(rows, begin + kRows));
}

template <class T>
T dot(int64_t n, const T* a, const T* b) {
  using Vec = simd::Vec<T>;
  Vec sum(T(0));
  for (int64_t i = 0; i < n; i += kLanes<T>) sum += Vec::load(a + i, n - i) * Vec::load(b + i, n - i);
  return reduce_add(sum);
}

// What forward and backward share: one sequence, and heads first ... last - 1 of it.
template <class T>
class SsdPiece {
 public:
  using Vec = simd::Vec<T>;

  SsdPiece(const SsdInputs<T>& in, int64_t piece, Workspace<T>& workspace)
      : in_(in),
        s_(in.shape),
        N_(s_.states),
        P_(s_.head_dim),
        stride_(s_.stride()),
        batch_(piece / s_.head_pieces()),
        part_(piece % s_.head_pieces()),
        first_(s_.heads * part_ / s_.head_pieces()),
        last_(s_.heads * (part_ + 1) / s_.head_pieces()),
        scores_(workspace.take(s_.chunk * stride_)),
        weights_(workspace.take(s_.chunk * stride_)),
        steps_(workspace.take(stride_)),
        high_(workspace.take(stride_)),
        low_(workspace.take(stride_)),
        from_start_(workspace.take(stride_)),
        to_end_(workspace.take(stride_)),
        rows_(workspace.take(s_.chunk * N_)) {}

 protected:
  Chunk chunk(int64_t index) const {
    return {batch_, index, index * s_.chunk, std::min(s_.chunk, s_.length - index * s_.chunk)};
  }

  // C B^T on and below the diagonal.
  void score(const Chunk& k) const {
    for_rows(k.tokens, [&](int64_t begin, int64_t end) {
      blas::gemm<T>(false, true, end - begin, end, N_, 1, in_.C.at(k.batch, k.token + begin), in_.C.row_stride,
                    in_.B.at(k.batch, k.token), in_.B.row_stride, 0, scores_ + begin * stride_, stride_);
    });
  }

  // Step sizes and decays of a head. Elements behind the last token are finite.
  void decay(const Chunk& k, int64_t head) const {
    double sum = 0;
    for (int64_t t = 0; t < stride_; ++t) {
      const T step = t < k.tokens ? in_.step.at(k.batch, k.token + t)[head] : T(0);
      sum += static_cast<double>(step) * static_cast<double>(in_.A[head]);
      steps_[t] = step;
      high_[t] = static_cast<T>(sum);
      low_[t] = static_cast<T>(sum - static_cast<double>(high_[t]));
    }
    const Vec high = high_[k.tokens - 1], low = low_[k.tokens - 1];
    for (int64_t t = 0; t < stride_; t += kLanes<T>) {
      exp(Vec::load(high_ + t)).store(from_start_ + t);
      exp((high - Vec::load(high_ + t)) + (low - Vec::load(low_ + t))).store(to_end_ + t);
    }
  }

  // Calls body(s, decays) for the vectors s ... of row t of e^(Lambda_t - Lambda_s), zeros above the diagonal, up to
  // the end of the block of rows.
  template <class Body>
  void for_decays(int64_t t, const Body& body) const {
    const Vec high = high_[t], low = low_[t];
    const int64_t end = std::min(stride_, (t / kRows + 1) * kRows);
    for (int64_t s = 0; s < end; s += kLanes<T>) {
      const Vec decays = exp((high - Vec::load(high_ + s)) + (low - Vec::load(low_ + s)));
      body(s, s + kLanes<T> <= t + 1 ? decays : select(Vec::iota() <= static_cast<T>(t - s), decays, T(0)));
    }
  }

  // rows[t, n] = factors[t] from[t, n], and times step_t if asked for.
  void scale_rows(const Chunk& k, const TokenRows<const T>& from, const T* factors, bool by_step) const {
    for (int64_t t = 0; t < k.tokens; ++t) {
      const T* const row = from.at(k.batch, k.token + t);
      const T factor = by_step ? factors[t] * steps_[t] : factors[t];
      for (int64_t n = 0; n < N_; ++n) rows_[t * N_ + n] = factor * row[n];
    }
  }

  const SsdInputs<T>& in_;
  const SsdShape& s_;
  int64_t N_, P_, stride_, batch_, part_, first_, last_;
  T *scores_, *weights_;                             // [chunk, stride]
  T *steps_, *high_, *low_, *from_start_, *to_end_;  // by token: Lambda in two parts, e^Lambda, e^(Lambda_end - Lambda)
  T* rows_;                                          // [chunk, N]: Q or K
};

}  // namespace margay::kernels::ssd_scan
