#include "ops/selective_scan.h"

#include <utility>

#include "ops/cpu/simd_math.h"
#include "ops/unary_functors.h"

// A piece works through its sequences chunk by chunk, and in a chunk block by block: a block is one vector of
// neighbouring channels, so that a chunk's rows are in the cache for all of them. In a block the loop over time is the
// inner one, for a few states at a time, which stay in registers.

namespace margay::kernels {
namespace {

template <class T>
constexpr int64_t kLanes = simd::Vec<T>::size;

// Rows ahead that are asked for: a block's rows are a line each, too far apart for the hardware to foresee.
constexpr int64_t kAhead = 16;

// States that are carried through a chunk together.
constexpr int kStates = 4;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// The sequences and channels of one piece.
struct Piece {
  int64_t first_sequence, last_sequence, first_channel, width, index;
};

Piece piece_of(const ScanShape& s, int64_t index) {
  const int64_t range = index / s.channel_pieces(), part = index % s.channel_pieces();
  const auto channel = [&](int64_t p) {
    return std::min(s.channels, s.blocks() * p / s.channel_pieces() * ScanShape::kBlock);
  };
  return {s.batch * range / s.sequence_pieces(), s.batch * (range + 1) / s.sequence_pieces(), channel(part),
          channel(part + 1) - channel(part), index};
}

// One vector of channels in one chunk of one sequence.
struct Block {
  int64_t batch, token, tokens, channel, lanes, offset;  // offset: of the channel in its piece
};

// Calls body.template operator()<M>(n) for M neighbouring states from n on, until all are done.
template <class Body>
void for_states(int64_t states, const Body& body) {
  int64_t n = 0;
  for (; n + kStates <= states; n += kStates) body.template operator()<kStates>(n);
  for (; n < states; ++n) body.template operator()<1>(n);
}

// Memory of a piece, handed out part by part.
template <class T>
struct Workspace {
  T* next;
  T* take(int64_t size) { return std::exchange(next, next + size); }
};

// A [width, N] matrix becomes rows of channels, to[n * stride + c] = function(from[c, n]); and the way back.
template <class T, class Function>
void transpose_channels(int64_t width, int64_t states, const T* from, T* to, int64_t stride, const Function& function) {
  for (int64_t c = 0; c < width; ++c)
    for (int64_t n = 0; n < states; ++n) to[n * stride + c] = function(from[c * states + n]);
}
template <class T>
void transpose_states(int64_t width, int64_t states, const T* from, int64_t stride, T* to) {
  for (int64_t c = 0; c < width; ++c)
    for (int64_t n = 0; n < states; ++n) to[c * states + n] = from[n * stride + c];
}

// What forward and backward share: the recurrence over one block.
template <class T>
class BlockScan {
 public:
  using Vec = simd::Vec<T>;

  BlockScan(const ScanInputs<T>& in, const Piece& piece, Workspace<T>& workspace)
      : in_(in),
        s_(in.shape),
        piece_(piece),
        stride_(s_.piece_width()),
        rates_(workspace.take(s_.states * stride_)),
        step_sizes_(workspace.take(s_.kChunk * s_.kBlock)),
        inputs_(workspace.take(s_.kChunk * s_.kBlock)),
        outputs_(workspace.take(s_.kChunk * s_.kBlock)) {
    std::fill_n(rates_, s_.states * stride_, T(0));
    transpose_channels(piece.width, s_.states, in.A + piece.first_channel * s_.states, rates_, stride_,
                       [](T rate) { return rate * static_cast<T>(kLog2E); });
  }

  // The step sizes dt, the inputs dt u, and the outputs as far as they come from D.
  void prepare(const Block& k) const {
    const Vec bias = in_.delta_bias ? Vec::load(in_.delta_bias + k.channel, k.lanes) : Vec(T(0));
    const Vec skip = in_.D ? Vec::load(in_.D + k.channel, k.lanes) : Vec(T(0));
    for (int64_t t = 0; t < k.tokens; ++t) {
      __builtin_prefetch(in_.u.at(k.batch, k.token + t + kAhead) + k.channel);
      __builtin_prefetch(in_.delta.at(k.batch, k.token + t + kAhead) + k.channel);
      const Vec u = Vec::load(in_.u.at(k.batch, k.token + t) + k.channel, k.lanes);
      Vec step = Vec::load(in_.delta.at(k.batch, k.token + t) + k.channel, k.lanes) + bias;
      if (in_.delta_softplus) step = softplus(step);
      step.store(step_sizes_ + t * kLanes<T>);
      (step * u).store(inputs_ + t * kLanes<T>);
      (skip * u).store(outputs_ + t * kLanes<T>);
    }
  }

  // Moves `states` (rows n of the piece's channels) over the block's tokens and adds what is read from them to the
  // outputs. With `decays`, it and `history` keep e^(dt A) and the states: [tokens, N, lanes], history one token ahead.
  template <bool keep>
  void advance(const Block& k, T* states, T* decays, T* history) const {
    for_states(s_.states, [&]<int M>(int64_t n) {
      Vec h[M], rate[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t row = (n + m) * stride_ + k.offset;
        h[m] = Vec::load(states + row);
        rate[m] = Vec::load(rates_ + row);
        if constexpr (keep) h[m].store(history + (n + m) * kLanes<T>);
      }
      // Locals: a store could change what is read through `this`, as far as the compiler knows.
      const int64_t N = s_.states, tokens = k.tokens, b_stride = in_.B.row_stride, c_stride = in_.C.row_stride;
      const T *b = in_.B.at(k.batch, k.token) + n, *c = in_.C.at(k.batch, k.token) + n;
      const T *const steps = step_sizes_, *const inputs = inputs_;
      T *const outputs = outputs_, *decay_row = keep ? decays + n * kLanes<T> : nullptr,
               *state_row = keep ? history + (N + n) * kLanes<T> : nullptr;
      for (int64_t t = 0; t < tokens; ++t, b += b_stride, c += c_stride) {
        const Vec step = Vec::load(steps + t * kLanes<T>), input = Vec::load(inputs + t * kLanes<T>);
        Vec y = Vec::load(outputs + t * kLanes<T>);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const Vec decay = exp2(step * rate[m]);
          h[m] = decay * h[m] + input * b[m];
          y += h[m] * c[m];
          if constexpr (keep) {
            decay.store(decay_row + m * kLanes<T>);
            h[m].store(state_row + m * kLanes<T>);
          }
        }
        y.store(outputs + t * kLanes<T>);
        if constexpr (keep) decay_row += N * kLanes<T>, state_row += N * kLanes<T>;
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) h[m].store(states + (n + m) * stride_ + k.offset);
    });
  }

  // Calls body(block) for the piece's vectors of channels.
  template <class Body>
  void for_blocks(int64_t batch, int64_t chunk, const Body& body) const {
    const int64_t token = chunk * s_.kChunk, tokens = std::min(s_.kChunk, s_.length - token);
    for (int64_t c = 0; c < piece_.width; c += kLanes<T>)
      body(Block{batch, token, tokens, piece_.first_channel + c, std::min(kLanes<T>, piece_.width - c), c});
  }

  // The states before the first token, rows n of the piece's channels.
  void start(int64_t batch, T* states) const {
    std::fill_n(states, s_.states * stride_, T(0));
    if (in_.initial)
      transpose_channels(piece_.width, s_.states,
                         in_.initial + (batch * s_.channels + piece_.first_channel) * s_.states, states, stride_,
                         [](T state) { return state; });
  }

  // Row n of the checkpoint of a chunk.
  int64_t checkpoint(int64_t batch, int64_t chunk, int64_t n) const {
    return ((batch * s_.chunks() + chunk) * s_.states + n) * s_.channels + piece_.first_channel;
  }

 protected:
  const ScanInputs<T>& in_;
  const ScanShape& s_;
  Piece piece_;
  int64_t stride_;  // between the rows of two states
  T *rates_, *step_sizes_, *inputs_, *outputs_;
};

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
void run(Cpu cpu, const SelectiveScanFwd<T>& a) {
  const ScanShape& s = a.in.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  parallel_for(cpu, s.pieces(), [&](int64_t index) {
    ForwardPiece<T>(a, piece_of(s, index), {a.workspace + index * a.piece_size(s)}).run();
  });
}

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

template void run(Cpu, const SelectiveScanFwd<float>&);
template void run(Cpu, const SelectiveScanFwd<double>&);
template void run(Cpu, const SelectiveScanBwd<float>&);
template void run(Cpu, const SelectiveScanBwd<double>&);

}  // namespace margay::kernels
