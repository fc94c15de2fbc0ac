#pragma once
#include <algorithm>
#include <utility>

#include "engine/cuda/packs.cuh"
#include "ops/cuda/rows.cuh"

// Rows that are read once: a team moves them in packs and keeps them in registers from one pass to the next, as long as
// they are short enough. Kernels are written once for all teams and lengths.

namespace margay::cuda {

/// A row of C elements in packs of N: a thread of the team has every kSize-th pack. With `held` > 0, which is then as
/// many packs as a thread can have, what load() gives lies in registers; else every pass reads it from memory.
template <class Threads, int N, int held>
class PackedRow : public Threads {
 public:
  using Team = Threads;
  static constexpr int kPack = N;

  __device__ explicit PackedRow(int64_t C) : C_(C) {}

  /// Calls body(p, i) for the packs that this thread has: the p-th starts with element i. One after the other from the
  /// left.
  template <class Body>
  __device__ void each(const Body& body) const {
    if constexpr (held > 0) {
#pragma unroll
      for (int p = 0; p < held; ++p) {
        const int i = (p * Team::kSize + Team::rank()) * N;
        if (i < static_cast<int>(C_)) body(p, i);
      }
    } else {
      for (int64_t i = Team::rank() * N; i < C_; i += Team::kSize * N) body(0, i);
    }
  }

  /// What read(i) -> Pack gives for the packs of the row: asked for at once and kept, or asked for in every pass.
  template <class Read>
  class Values {
   public:
    __device__ Values(const PackedRow& row, const Read& read) : read_(read) {
      if constexpr (held > 0) row.each([&](int p, int i) { kept_[p] = read(i); });
    }
    __device__ auto operator()(int p, int64_t i) const {
      if constexpr (held > 0) {
        return kept_[p];
      } else {
        return read_(i);
      }
    }

   private:
    Read read_;
    decltype(std::declval<Read>()(0)) kept_[held > 0 ? held : 1];
  };
  template <class Read>
  __device__ Values<Read> values(const Read& read) const {
    return {*this, read};
  }
  /// The row that starts at `from`.
  template <class T>
  __device__ auto load(const T* from) const {
    return values([from](int64_t i) { return cuda::load<N>(from + i); });
  }
  /// The same for what other rows share, or one pass alone reads: never kept. Zeros where `from` is null.
  template <class T>
  __device__ static auto stream(const T* from) {
    return [from](int, int64_t i) { return from ? cuda::load<N>(from + i) : repeat<N>(T{}); };
  }

  /// f(x, ...) of every element of load()s and stream()s, as accumulators, combined from `start` on, in every thread.
  template <class Combine, class A, class F, class... X>
  __device__ A reduce(A start, const F& f, const X&... x) const {
    each([&](int p, auto i) {
      const auto terms = apply(f, x(p, i)...);
      for (int k = 0; k < N; ++k) start = Combine::combine(start, terms[k]);
    });
    return Team::template reduce<Combine>(start);
  }
  template <class F, class... X>
  __device__ auto sum(const F& f, const X&... x) const {
    using A = decltype(apply(f, x(0, int64_t{0})...)[0] + 0);
    return reduce<Sum>(A(0), f, x...);
  }
  /// to[i] = f(x[i], ...).
  template <class T, class F, class... X>
  __device__ void write(T* to, const F& f, const X&... x) const {
    each([&](int p, auto i) { store(to + i, map([](auto value) { return T(value); }, apply(f, x(p, i)...))); });
  }

  /// Starts a kernel whose teams go through `rows` rows.
  template <class... Parameters, class... Arguments>
  static void launch(Cuda context, int64_t rows, void (*kernel)(Parameters...), const Arguments&... arguments) {
    constexpr int64_t most_blocks = int64_t{1} << 16;
    constexpr int threads = Team::kSize == kThreads ? kThreads : kThreads / 2;  // few rows: more blocks
    const int64_t blocks = std::min((rows * Team::kSize + threads - 1) / threads, most_blocks);
    if (blocks > 0) cuda::launch(context, dim3(static_cast<unsigned>(blocks)), dim3(threads), kernel, arguments...);
  }

 private:
  template <class F, class... Ts>
  __device__ static auto apply(const F& f, const Pack<Ts, N>&... packs) {
    return map([&](Ts... values) { return f(acc_t<Ts>(values)...); }, packs...);
  }

  int64_t C_;
};

/// Calls body.template operator()<Row>() with the PackedRow for rows of C elements of T, the widest type in them, which
/// start at multiples of C elements behind `data`. It depends on C and the addresses alone.
template <class T, class Body, class... Ts>
void with_packed_rows(int64_t C, const Body& body, const Ts*... data) {
  constexpr int N = kPackOf<T>;
  if (C % N != 0 || !aligned<N>(data...)) {
    constexpr int64_t longest_of_warp = 1024;
    if (C <= longest_of_warp) return body.template operator()<PackedRow<WarpTeam, 1, 0>>();
    return body.template operator()<PackedRow<BlockTeam, 1, 0>>();
  }
  constexpr int most = std::min(8, 32 / N);  // packs of a thread whose elements fit in its registers two or three times
  using Lanes = LaneTeam<8>;
  const int64_t packs = C / N;
  if (packs <= 2 * Lanes::kSize) return body.template operator()<PackedRow<Lanes, N, 2>>();
  if (packs <= 2 * WarpTeam::kSize) return body.template operator()<PackedRow<WarpTeam, N, 2>>();
  if (packs <= most * WarpTeam::kSize) return body.template operator()<PackedRow<WarpTeam, N, most>>();
  if (packs <= 4 * BlockTeam::kSize) return body.template operator()<PackedRow<BlockTeam, N, 4>>();
  return body.template operator()<PackedRow<BlockTeam, N, 0>>();
}

}  // namespace margay::cuda
