#include "engine/parallel.h"
#include "ops/cpu/ssd/chunk.h"

namespace margay::kernels {
namespace {

using namespace ssd_scan;  // NOLINT: this file is one half of it

// Cotangents, with dW = dY X^T and U_ts = dW_ts (C_t . B_s) e^(Lambda_t - Lambda_s) on and below the diagonal:
//   dX = W^T dY + K dH' + D dY,
//   d(C B^T)_ts = dW_ts e^(Lambda_t - Lambda_s) step_s, summed over heads, from which dC and dB by two products,
//   dQ = dY H^T, dC_t += e^(Lambda_t) dQ_t,   dK = X dH'^T, dB_s += e^(Lambda_end - Lambda_s) step_s dK_s,
//   dstep_s = sum over t of U_ts + e^(Lambda_end - Lambda_s) dK_s . B_s,
//   dLambda_t = sum over s of U_ts step_s - step_t sum over r of U_rt + dQ_t . Q_t - dK_t . K_t,
//   dLambda_end += sum over s of dK_s . K_s + e^(Lambda_end) <dH', H>,
//   dH = e^(Lambda_end) dH' + Q^T dY.
// Lambda_t is the sum of A step_r over r <= t: dstep_r += A G_r, dA = sum over r of step_r G_r, G_r = sum over t >= r
// of dLambda_t.
template <class T>
class BackwardPiece : SsdPiece<T> {
 public:
  using typename SsdPiece<T>::Vec;

  /// dB and dC [B, L, N] of this piece's heads; sums [2, B, H] of dA and dD.
  BackwardPiece(const SsdBwd<T>& a, int64_t piece, Workspace<T> workspace, T* dB, T* dC, T* sums)
      : SsdPiece<T>(a.in, piece, workspace),
        a_(a),
        dscores_(workspace.take(s_.chunk * stride_)),
        dweights_(workspace.take(s_.chunk * stride_)),
        by_column_(workspace.take(stride_)),
        dlambda_(workspace.take(stride_)),
        drows_(workspace.take(s_.chunk * N_)),
        dstates_(workspace.take(s_.heads * s_.state_size())),
        dB_(dB + batch_ * s_.length * N_),
        dC_(dC + batch_ * s_.length * N_),
        dA_(sums + batch_ * s_.heads),
        dD_(dA_ + s_.batch * s_.heads) {}

  void run() const {
    const int64_t size = s_.state_size(), count = (last_ - first_) * size;
    const int64_t start = (batch_ * s_.heads + first_) * size;
    std::fill_n(dA_ + first_, last_ - first_, T(0));
    std::fill_n(dD_ + first_, last_ - first_, T(0));
    if (a_.dfinal) {
      std::copy_n(a_.dfinal + start, count, dstates_);
    } else {
      std::fill_n(dstates_, count, T(0));
    }
    for (int64_t index = s_.chunks() - 1; index >= 0; --index) {
      const Chunk k = this->chunk(index);
      T *const dB = dB_ + k.token * N_, *const dC = dC_ + k.token * N_;
      std::fill_n(dB, k.tokens * N_, T(0));
      std::fill_n(dC, k.tokens * N_, T(0));
      std::fill_n(dscores_, k.tokens * stride_, T(0));
      this->score(k);
      for (int64_t head = first_; head < last_; ++head) retreat(k, head);
      pull_back_scores(k, dB, dC);
    }
    if (a_.dinitial) std::copy_n(dstates_, count, a_.dinitial + start);
  }

 private:
  using SsdPiece<T>::in_, SsdPiece<T>::s_, SsdPiece<T>::N_, SsdPiece<T>::P_, SsdPiece<T>::stride_, SsdPiece<T>::batch_,
      SsdPiece<T>::first_, SsdPiece<T>::last_, SsdPiece<T>::scores_, SsdPiece<T>::weights_, SsdPiece<T>::steps_,
      SsdPiece<T>::from_start_, SsdPiece<T>::to_end_, SsdPiece<T>::rows_;

  void pull_back_scores(const Chunk& k, T* dB, T* dC) const {
    for_rows(k.tokens, [&](int64_t begin, int64_t end) {
      blas::gemm<T>(false, false, end - begin, N_, end, 1, dscores_ + begin * stride_, stride_,
                    in_.B.at(k.batch, k.token), in_.B.row_stride, 1, dC + begin * N_, N_);
      blas::gemm<T>(true, false, end - begin, N_, k.tokens - begin, 1, dscores_ + begin * stride_ + begin, stride_,
                    in_.C.at(k.batch, k.token + begin), in_.C.row_stride, 1, dB + begin * N_, N_);
    });
  }

  // One head of one chunk; its dH' becomes dH.
  void retreat(const Chunk& k, int64_t head) const {
    this->decay(k, head);
    const T* const x = in_.x.at(k.batch, k.token) + head * P_;
    const int64_t corner = (k.batch * s_.length + k.token) * s_.width() + head * P_;
    const T* const dy = a_.dy + corner;
    T* const dx = a_.dx + corner;
    std::fill_n(by_column_, stride_, T(0));
    pull_back_weights(k, x, dy, dx);
    T* const dstate = dstates_ + (head - first_) * s_.state_size();
    T dlambda_end = pull_back_states(k, head, x, dy, dx, dstate);
    T dD = 0;
    for (int64_t t = 0; t < k.tokens; ++t) {
      const T* const row = dy + t * s_.width();
      for (int64_t p = 0; p < P_; ++p) dx[t * s_.width() + p] += in_.D[head] * row[p];
      dD += dot(P_, row, x + t * in_.x.row_stride);
    }
    dD_[head] += dD;
    double sum = static_cast<double>(dlambda_end), dA = 0;
    for (int64_t t = k.tokens - 1; t >= 0; --t) {
      sum += static_cast<double>(dlambda_[t]);
      dA += sum * static_cast<double>(steps_[t]);
      a_.dstep[(k.batch * s_.length + k.token + t) * s_.heads + head] =
          by_column_[t] + static_cast<T>(sum * static_cast<double>(in_.A[head]));
    }
    dA_[head] += static_cast<T>(dA);
  }

  // Through W: dX, d(C B^T), and the sums of U over columns and of U step over rows, without and with which dstep and
  // dLambda begin.
  void pull_back_weights(const Chunk& k, const T* x, const T* dy, T* dx) const {
    const int64_t row = s_.width(), x_row = in_.x.row_stride;
    for_rows(k.tokens, [&](int64_t begin, int64_t end) {
      blas::gemm<T>(false, true, end - begin, end, P_, 1, dy + begin * row, row, x, x_row, 0,
                    dweights_ + begin * stride_, stride_);
    });
    for (int64_t t = 0; t < k.tokens; ++t) {
      Vec by_row(T(0));
      this->for_decays(t, [&](int64_t s, Vec decays) {
        const int64_t at = t * stride_ + s;
        const auto below = !(decays == T(0));  // elsewhere memory may hold anything
        const Vec steps = Vec::load(steps_ + s), dweight = Vec::load(dweights_ + at);
        const Vec scaled = select(below, decays * Vec::load(scores_ + at), T(0));
        const Vec u = select(below, dweight * scaled, T(0));
        (scaled * steps).store(weights_ + at);
        (Vec::load(dscores_ + at) + select(below, dweight * decays * steps, T(0))).store(dscores_ + at);
        (Vec::load(by_column_ + s) + u).store(by_column_ + s);
        by_row += u * steps;
      });
      dlambda_[t] = reduce_add(by_row);
    }
    for (int64_t t = 0; t < k.tokens; ++t) dlambda_[t] -= steps_[t] * by_column_[t];
    for_rows(k.tokens, [&](int64_t begin, int64_t end) {
      blas::gemm<T>(true, false, end - begin, P_, k.tokens - begin, 1, weights_ + begin * stride_ + begin, stride_,
                    dy + begin * row, row, 0, dx + begin * row, row);
    });
  }

  // Through the states before and after the chunk. Returns what the last token's Lambda gets as the chunk's end.
  T pull_back_states(const Chunk& k, int64_t head, const T* x, const T* dy, T* dx, T* dstate) const {
    const int64_t size = s_.state_size(), row = s_.width(), x_row = in_.x.row_stride;
    const T* const state = a_.checkpoints + ((k.batch * s_.chunks() + k.index) * s_.heads + head) * size;
    const T whole = from_start_[k.tokens - 1];
    T dend = whole * dot(size, dstate, state);
    // K and dH'.
    this->scale_rows(k, in_.B, to_end_, true);
    blas::gemm<T>(false, false, k.tokens, P_, N_, 1, rows_, N_, dstate, P_, 1, dx, row);
    blas::gemm<T>(false, true, k.tokens, N_, P_, 1, x, x_row, dstate, P_, 0, drows_, N_);
    for (int64_t t = 0; t < k.tokens; ++t) {
      const T* const b = in_.B.at(k.batch, k.token + t);
      T* const dB = dB_ + (k.token + t) * N_;
      const T product = to_end_[t] * dot(N_, drows_ + t * N_, b), factor = to_end_[t] * steps_[t];
      for (int64_t n = 0; n < N_; ++n) dB[n] += factor * drows_[t * N_ + n];
      by_column_[t] += product;
      dlambda_[t] -= product * steps_[t];
      dend += product * steps_[t];
    }
    // Q and H.
    this->scale_rows(k, in_.C, from_start_, false);
    blas::gemm<T>(false, true, k.tokens, N_, P_, 1, dy, row, state, P_, 0, drows_, N_);
    for (int64_t t = 0; t < k.tokens; ++t) {
      T* const dC = dC_ + (k.token + t) * N_;
      for (int64_t n = 0; n < N_; ++n) dC[n] += from_start_[t] * drows_[t * N_ + n];
      dlambda_[t] += dot(N_, drows_ + t * N_, rows_ + t * N_);
    }
    blas::gemm<T>(true, false, N_, P_, k.tokens, 1, rows_, N_, dy, row, whole, dstate, P_);
    return dend;
  }

  const SsdBwd<T>& a_;
  T *dscores_, *dweights_;
  T *by_column_, *dlambda_;
  T *drows_, *dstates_;
  T *dB_, *dC_, *dA_, *dD_;
};

// Sums over sequences and ranges of heads, in their order.
template <class T>
void combine(const SsdBwd<T>& a, const T* sums, const T* partials) {
  const SsdShape& s = a.in.shape;
  for (int64_t head = 0; head < s.heads; ++head) {
    T dA = 0, dD = 0;
    for (int64_t b = 0; b < s.batch; ++b) {
      dA += sums[b * s.heads + head];
      dD += sums[(s.batch + b) * s.heads + head];
    }
    a.dA[head] = dA;
    a.dD[head] = dD;
  }
  if (s.head_pieces() == 1) return;
  const int64_t size = s.batch * s.length * s.states;
  for (int64_t i = 0; i < size; ++i) {
    T dB = 0, dC = 0;
    for (int64_t part = 0; part < s.head_pieces(); ++part) {
      dB += partials[2 * part * size + i];
      dC += partials[(2 * part + 1) * size + i];
    }
    a.dB[i] = dB;
    a.dC[i] = dC;
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const SsdBwd<T>& a) {
  const SsdShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T* const sums = a.workspace + s.pieces() * a.piece_size(s);
  T* const partials = sums + a.sums_size(s);
  const int64_t size = s.batch * s.length * s.states;
  parallel_for(cpu, s.pieces(), [&](int64_t piece) {
    const int64_t part = piece % s.head_pieces();
    T* const dB = s.head_pieces() > 1 ? partials + 2 * part * size : a.dB;
    T* const dC = s.head_pieces() > 1 ? dB + size : a.dC;
    BackwardPiece<T>(a, piece, {a.workspace + piece * a.piece_size(s)}, dB, dC, sums).run();
  });
  combine(a, sums, partials);
}

template void run(Cpu, const SsdBwd<float>&);
template void run(Cpu, const SsdBwd<double>&);

}  // namespace margay::kernels
