#pragma once
#include "ops/cpu/simd_math.h"
#include "ops/cpu/workspace.h"
#include "ops/selective_scan.h"

// A piece works through its sequences chunk by chunk, and in a chunk block by block: a block is one vector of
// neighbouring channels, so that a chunk's rows are in the cache for all of them. In a block the loop over time is the
// inner one, for a few states at a time, which stay in registers.

namespace margay::kernels::scan {

template <class T>
inline constexpr int64_t kLanes = simd::Vec<T>::size;

// Rows ahead that are asked for: a block's rows are a line each, too far apart for the hardware to foresee.
inline constexpr int64_t kAhead = 16;

// States that are carried through a chunk together.
inline constexpr int kStates = 4;
inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// The sequences and channels of one piece.
struct Piece {
  int64_t first_sequence, last_sequence, first_channel, width, index;
};

inline Piece piece_of(const ScanShape& s, int64_t index) {
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

}  // namespace margay::kernels::scan
