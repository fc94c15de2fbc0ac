#include "engine/parallel.h"
#include "ops/cpu/selective_scan/block.h"
#include "ops/unary_functors.h"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is one half of it

template <class T>
class ForwardPiece : BlockScan<T> {
 public:
  using typename BlockScan<T>::Vec;

  ForwardPiece(const SelectiveScanFwd<T>& a, const Piece& piece, Workspace<T> workspace)
      : BlockScan<T>(a.in, piece, workspace), a_(a), states_(workspace.take(s_.states * stride_)) {}

  void run() const {
    for (int64_t b = piece_.first_sequence; b < piece_.last_sequence; ++b) {
      this->start(b, states_);
      for (int64_t chunk = 0; chunk < s_.chunks(); ++chunk) {
        if (a_.checkpoints)
          for (int64_t n = 0; n < s_.states; ++n)
            std::copy_n(states_ + n * stride_, piece_.width, a_.checkpoints + this->checkpoint(b, chunk, n));
        this->for_blocks(b, chunk, [&](const Block& k) {
          this->prepare(k);
          this->template advance<false>(k, states_, nullptr, nullptr);
          write(k);
        });
      }
      transpose_states(piece_.width, s_.states, states_, stride_,
                       a_.final + (b * s_.channels + piece_.first_channel) * s_.states);
    }
  }

 private:
  using BlockScan<T>::s_, BlockScan<T>::piece_, BlockScan<T>::stride_, BlockScan<T>::outputs_;

  void write(const Block& k) const {
    for (int64_t t = 0; t < k.tokens; ++t) {
      __builtin_prefetch(a_.y + (k.batch * s_.length + k.token + t + kAhead) * s_.channels + k.channel, 1);
      if (a_.in.z.data) __builtin_prefetch(a_.in.z.at(k.batch, k.token + t + kAhead) + k.channel);
      Vec y = Vec::load(outputs_ + t * kLanes<T>);
      if (a_.in.z.data) y *= functors::Silu::value(Vec::load(a_.in.z.at(k.batch, k.token + t) + k.channel, k.lanes));
      y.store(a_.y + (k.batch * s_.length + k.token + t) * s_.channels + k.channel, k.lanes);
    }
  }

  const SelectiveScanFwd<T>& a_;
  T* states_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const SelectiveScanFwd<T>& a) {
  const ScanShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  parallel_for(cpu, s.pieces(), [&](int64_t index) {
    ForwardPiece<T>(a, piece_of(s, index), {a.workspace + index * a.piece_size(s)}).run();
  });
}

template void run(Cpu, const SelectiveScanFwd<float>&);
template void run(Cpu, const SelectiveScanFwd<double>&);

}  // namespace margay::kernels
