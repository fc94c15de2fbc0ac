#include "engine/parallel.h"
#include "ops/cpu/selective_scan/block.h"
#include "ops/unary_functors.h"

namespace margay::kernels {
namespace {

using namespace scan;  // NOLINT: this file is one half of it

// With dy the cotangent of what stands before the gate, and g_t that of the states h_t, backwards in time:
//   g_t = C_t dy_t + e^(dt_{t+1} A) g_{t+1},
//   dC_t = sum over e of dy_t h_t,   dB_t = sum over e of dt_t u_t g_t,
//   du_t = dt_t s1 + D dy_t with s1 = sum over n of B_t g_t,
//   ddt_t = u_t s1 + sum over n of A p_t,   dA = sum over t of dt_t p_t,   with p_t = g_t e^(dt_t A) h_{t-1};
// dt = softplus(x) gives dx = e^(x - dt) ddt. The gate y = v silu(z) gives dy = dout silu(z), dz = dout v silu'(z).
template <class T>
class BackwardPiece : BlockScan<T> {
 public:
  using typename BlockScan<T>::Vec;

  // The piece's workspace begins with its sums.
  BackwardPiece(const SelectiveScanBwd<T>& a, const Piece& piece, Workspace<T> workspace, T* dB, T* dC)
      : BackwardPiece(a, piece, workspace.take(a.sums_size(a.in.shape)), workspace, dB, dC) {}

  void run() const {
    std::fill_n(sums_, a_.sums_size(s_), T(0));
    for (int64_t b = piece_.first_sequence; b < piece_.last_sequence; ++b) {
      std::fill_n(carry_, s_.states * stride_, T(0));
      const int64_t corner = (b * s_.channels + piece_.first_channel) * s_.states;
      if (a_.dfinal)
        transpose_channels(piece_.width, s_.states, a_.dfinal + corner, carry_, stride_, [](T g) { return g; });
      for (int64_t chunk = s_.chunks() - 1; chunk >= 0; --chunk) {
        std::fill_n(products_, 2 * s_.kChunk * s_.states * kLanes<T>, T(0));
        this->for_blocks(b, chunk, [&](const Block& k) {
          for (int64_t n = 0; n < s_.states; ++n)
            Vec::load(a_.checkpoints + this->checkpoint(b, chunk, n) + k.offset, k.lanes)
                .store(history_start_ + n * stride_ + k.offset);
          this->prepare(k);
          this->template advance<true>(k, history_start_, decays_, history_);
          pull_back_gate(k);
          retreat(k);
          write(k);
        });
        sum_channels(b, chunk);
      }
      if (a_.dinitial) transpose_states(piece_.width, s_.states, carry_, stride_, a_.dinitial + corner);
    }
  }

 private:
  using BlockScan<T>::s_, BlockScan<T>::in_, BlockScan<T>::piece_, BlockScan<T>::stride_, BlockScan<T>::rates_,
      BlockScan<T>::step_sizes_, BlockScan<T>::inputs_, BlockScan<T>::outputs_;

  BackwardPiece(const SelectiveScanBwd<T>& a, const Piece& piece, T* sums, Workspace<T>& workspace, T* dB, T* dC)
      : BlockScan<T>(a.in, piece, workspace),
        a_(a),
        sums_(sums),
        history_start_(workspace.take(s_.states * stride_)),
        carry_(workspace.take(s_.states * stride_)),
        decays_(workspace.take(s_.kChunk * s_.states * s_.kBlock)),
        history_(workspace.take((s_.kChunk + 1) * s_.states * s_.kBlock)),
        products_(workspace.take(2 * s_.kChunk * s_.states * s_.kBlock)),
        from_inputs_(workspace.take(s_.kChunk * s_.kBlock)),
        from_decays_(workspace.take(s_.kChunk * s_.kBlock)),
        dB_(dB),
        dC_(dC) {}

  // The outputs make place for their cotangents; dz and dD.
  void pull_back_gate(const Block& k) const {
    T* const sum = sums_ + s_.states * stride_ + k.offset;
    Vec dD = Vec::load(sum);
    for (int64_t t = 0; t < k.tokens; ++t) {
      const int64_t row = (k.batch * s_.length + k.token + t) * s_.channels + k.channel;
      __builtin_prefetch(a_.dy + row + kAhead * s_.channels);
      Vec dy = Vec::load(a_.dy + row, k.lanes);
      if (a_.dz) {
        __builtin_prefetch(a_.dz + row + kAhead * s_.channels, 1);
        __builtin_prefetch(in_.z.at(k.batch, k.token + t + kAhead) + k.channel);
        const Vec z = Vec::load(in_.z.at(k.batch, k.token + t) + k.channel, k.lanes);
        const Vec share = functors::Sigmoid::value(z), gate = z * share;
        (dy * Vec::load(outputs_ + t * kLanes<T>) * (share + gate * (T(1) - share))).store(a_.dz + row, k.lanes);
        dy *= gate;
      }
      dy.store(outputs_ + t * kLanes<T>);
      dD += dy * Vec::load(in_.u.at(k.batch, k.token + t) + k.channel, k.lanes);
    }
    dD.store(sum);
  }

  // The reverse recurrence over a block, a few states at a time.
  void retreat(const Block& k) const {
    std::fill_n(from_inputs_, k.tokens * kLanes<T>, T(0));
    std::fill_n(from_decays_, k.tokens * kLanes<T>, T(0));
    for_states(s_.states, [&]<int M>(int64_t n) {
      Vec carry[M], rate[M], drate[M], h[M];
      const auto row = [&](int m) { return (n + m) * stride_ + k.offset; };
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        carry[m] = Vec::load(carry_ + row(m));
        rate[m] = Vec::load(rates_ + row(m));
        drate[m] = Vec::load(sums_ + row(m));
        h[m] = Vec::load(history_ + (k.tokens * s_.states + n + m) * kLanes<T>);
      }
      const int64_t last = k.tokens - 1, row_size = s_.states * kLanes<T>, first = last * row_size + n * kLanes<T>;
      const int64_t b_stride = in_.B.row_stride, c_stride = in_.C.row_stride;
      const T *b = in_.B.at(k.batch, k.token + last) + n, *c = in_.C.at(k.batch, k.token + last) + n;
      const T *before = history_ + first, *decay = decays_ + first;
      const T *const steps = step_sizes_, *const inputs = inputs_, *const cotangents = outputs_;
      T *dB = products_ + first, *dC = dB + s_.kChunk * row_size;
      T *const from_inputs = from_inputs_, *const from_decays = from_decays_;
      for (int64_t t = last; t >= 0; --t) {
        const Vec step = Vec::load(steps + t * kLanes<T>), input = Vec::load(inputs + t * kLanes<T>);
        const Vec dy = Vec::load(cotangents + t * kLanes<T>);
        Vec from_input = Vec::load(from_inputs + t * kLanes<T>), from_decay = Vec::load(from_decays + t * kLanes<T>);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const Vec g = carry[m] + dy * c[m];
          (Vec::load(dC + m * kLanes<T>) + dy * h[m]).store(dC + m * kLanes<T>);
          (Vec::load(dB + m * kLanes<T>) + input * g).store(dB + m * kLanes<T>);
          from_input += g * b[m];
          h[m] = Vec::load(before + m * kLanes<T>);
          carry[m] = g * Vec::load(decay + m * kLanes<T>);
          const Vec p = carry[m] * h[m];
          from_decay += rate[m] * p;
          drate[m] += step * p;
        }
        from_input.store(from_inputs + t * kLanes<T>);
        from_decay.store(from_decays + t * kLanes<T>);
        b -= b_stride, c -= c_stride;
        before -= row_size, decay -= row_size, dB -= row_size, dC -= row_size;
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        carry[m].store(carry_ + row(m));
        drate[m].store(sums_ + row(m));
      }
    });
  }

  // du, ddelta and the sum of its bias.
  void write(const Block& k) const {
    const Vec skip = in_.D ? Vec::load(in_.D + k.channel, k.lanes) : Vec(T(0));
    const Vec bias = in_.delta_bias ? Vec::load(in_.delta_bias + k.channel, k.lanes) : Vec(T(0));
    T* const sum = sums_ + (s_.states + 1) * stride_ + k.offset;
    Vec dbias = Vec::load(sum);
    for (int64_t t = 0; t < k.tokens; ++t) {
      const int64_t row = (k.batch * s_.length + k.token + t) * s_.channels + k.channel;
      __builtin_prefetch(a_.du + row + kAhead * s_.channels, 1);
      __builtin_prefetch(a_.ddelta + row + kAhead * s_.channels, 1);
      const Vec step = Vec::load(step_sizes_ + t * kLanes<T>), from_input = Vec::load(from_inputs_ + t * kLanes<T>);
      const Vec u = Vec::load(in_.u.at(k.batch, k.token + t) + k.channel, k.lanes);
      (step * from_input + skip * Vec::load(outputs_ + t * kLanes<T>)).store(a_.du + row, k.lanes);
      Vec ddelta = u * from_input + Vec::load(from_decays_ + t * kLanes<T>) * static_cast<T>(kLn2);
      if (in_.delta_softplus) {
        const Vec raw = Vec::load(in_.delta.at(k.batch, k.token + t) + k.channel, k.lanes) + bias;
        ddelta *= exp(raw - step);
      }
      ddelta.store(a_.ddelta + row, k.lanes);
      dbias += ddelta;
    }
    dbias.store(sum);
  }

  // dB and dC of a chunk from the sums over blocks.
  void sum_channels(int64_t batch, int64_t chunk) const {
    const int64_t token = chunk * s_.kChunk, count = std::min(s_.kChunk, s_.length - token) * s_.states;
    const int64_t to = (batch * s_.length + token) * s_.states;
    const T* const dC = products_ + s_.kChunk * s_.states * kLanes<T>;
    for (int64_t i = 0; i < count; ++i) {
      dB_[to + i] = reduce_add(Vec::load(products_ + i * kLanes<T>));
      dC_[to + i] = reduce_add(Vec::load(dC + i * kLanes<T>));
    }
  }

  const SelectiveScanBwd<T>& a_;
  T* sums_;  // rows of the piece's channels: dA of every state, dD, ddelta_bias
  T *history_start_, *carry_, *decays_, *history_;
  T* products_;                    // [2, tokens, N, lanes]: dB and dC before their channels are summed
  T *from_inputs_, *from_decays_;  // the sums over states s1 and of A p / ln 2
  T *dB_, *dC_;
};

// The sums of the pieces, in their order.
template <class T>
void combine(const SelectiveScanBwd<T>& a, const T* partials) {
  const ScanShape& s = a.in.shape;
  std::fill_n(a.dA, s.channels * s.states, T(0));
  if (a.dD) std::fill_n(a.dD, s.channels, T(0));
  if (a.ddelta_bias) std::fill_n(a.ddelta_bias, s.channels, T(0));
  for (int64_t index = 0; index < s.pieces(); ++index) {
    const Piece piece = piece_of(s, index);
    const T* const sums = a.workspace + index * a.piece_size(s);
    for (int64_t c = 0; c < piece.width; ++c) {
      const int64_t channel = piece.first_channel + c;
      for (int64_t n = 0; n < s.states; ++n) a.dA[channel * s.states + n] += sums[n * s.piece_width() + c];
      if (a.dD) a.dD[channel] += sums[s.states * s.piece_width() + c];
      if (a.ddelta_bias) a.ddelta_bias[channel] += sums[(s.states + 1) * s.piece_width() + c];
    }
  }
  if (s.channel_pieces() == 1) return;
  const int64_t size = s.batch * s.length * s.states;
  for (int64_t i = 0; i < size; ++i) {
    T dB = 0, dC = 0;
    for (int64_t part = 0; part < s.channel_pieces(); ++part) {
      dB += partials[2 * part * size + i];
      dC += partials[(2 * part + 1) * size + i];
    }
    a.dB[i] = dB;
    a.dC[i] = dC;
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const SelectiveScanBwd<T>& a) {
  const ScanShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  T* const partials = a.workspace + s.pieces() * a.piece_size(s);
  const int64_t size = s.batch * s.length * s.states;
  parallel_for(cpu, s.pieces(), [&](int64_t index) {
    const int64_t part = index % s.channel_pieces();
    T* const dB = s.channel_pieces() > 1 ? partials + 2 * part * size : a.dB;
    T* const dC = s.channel_pieces() > 1 ? dB + size : a.dC;
    BackwardPiece<T>(a, piece_of(s, index), {a.workspace + index * a.piece_size(s)}, dB, dC).run();
  });
  combine(a, partials);
}

template void run(Cpu, const SelectiveScanBwd<float>&);
template void run(Cpu, const SelectiveScanBwd<double>&);

}  // namespace margay::kernels
