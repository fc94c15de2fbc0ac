#include "engine/parallel.h"
#include "ops/cpu/ssd/chunk.h"

namespace margay::kernels {
namespace {

using namespace ssd_scan;  // NOLINT: this file is one half of it

template <class T>
class ForwardPiece : SsdPiece<T> {
 public:
  using typename SsdPiece<T>::Vec;

  ForwardPiece(const SsdFwd<T>& a, int64_t piece, Workspace<T> workspace)
      : SsdPiece<T>(a.in, piece, workspace), a_(a), states_(workspace.take(s_.heads * s_.state_size())) {}

  void run() const {
    const int64_t size = s_.state_size(), count = (last_ - first_) * size;
    const int64_t start = (batch_ * s_.heads + first_) * size;
    if (in_.initial) {
      std::copy_n(in_.initial + start, count, states_);
    } else {
      std::fill_n(states_, count, T(0));
    }
    for (int64_t index = 0; index < s_.chunks(); ++index) {
      const Chunk k = this->chunk(index);
      if (a_.checkpoints)
        std::copy_n(states_, count, a_.checkpoints + ((batch_ * s_.chunks() + index) * s_.heads + first_) * size);
      this->score(k);
      for (int64_t head = first_; head < last_; ++head) advance(k, head, states_ + (head - first_) * size);
    }
    std::copy_n(states_, count, a_.final + start);
  }

 private:
  using SsdPiece<T>::in_, SsdPiece<T>::s_, SsdPiece<T>::N_, SsdPiece<T>::P_, SsdPiece<T>::stride_, SsdPiece<T>::batch_,
      SsdPiece<T>::first_, SsdPiece<T>::last_, SsdPiece<T>::scores_, SsdPiece<T>::weights_, SsdPiece<T>::steps_,
      SsdPiece<T>::from_start_, SsdPiece<T>::to_end_, SsdPiece<T>::rows_;

  // One head of one chunk; its state [N, P] moves on.
  void advance(const Chunk& k, int64_t head, T* state) const {
    this->decay(k, head);
    for (int64_t t = 0; t < k.tokens; ++t)
      this->for_decays(t, [&](int64_t s, Vec decays) {
        const Vec weight = decays * Vec::load(steps_ + s);
        // Above the diagonal there are no scores, only what memory holds.
        select(weight == T(0), T(0), weight * Vec::load(scores_ + t * stride_ + s)).store(weights_ + t * stride_ + s);
      });
    const T* const x = in_.x.at(k.batch, k.token) + head * P_;
    T* const y = a_.y + (k.batch * s_.length + k.token) * s_.width() + head * P_;
    const int64_t x_row = in_.x.row_stride, y_row = s_.width();
    for_rows(k.tokens, [&](int64_t begin, int64_t end) {
      blas::gemm<T>(false, false, end - begin, P_, end, 1, weights_ + begin * stride_, stride_, x, x_row, 0,
                    y + begin * y_row, y_row);
    });
    this->scale_rows(k, in_.C, from_start_, false);
    blas::gemm<T>(false, false, k.tokens, P_, N_, 1, rows_, N_, state, P_, 1, y, y_row);
    for (int64_t t = 0; t < k.tokens; ++t)
      for (int64_t p = 0; p < P_; ++p) y[t * y_row + p] += in_.D[head] * x[t * x_row + p];
    this->scale_rows(k, in_.B, to_end_, true);
    blas::gemm<T>(true, false, N_, P_, k.tokens, 1, rows_, N_, x, x_row, from_start_[k.tokens - 1], state, P_);
  }

  const SsdFwd<T>& a_;
  T* states_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const SsdFwd<T>& a) {
  const SsdShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  parallel_for(cpu, s.pieces(),
               [&](int64_t piece) { ForwardPiece<T>(a, piece, {a.workspace + piece * a.piece_size(s)}).run(); });
}

template void run(Cpu, const SsdFwd<float>&);
template void run(Cpu, const SsdFwd<double>&);

}  // namespace margay::kernels
