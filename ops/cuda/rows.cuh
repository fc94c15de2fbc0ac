#pragma once
#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

// What kernels share that work row by row: a warp takes a short row, a block of kThreads threads a long one. They are
// written once, with the team as a template parameter.

namespace margay::cuda {

/// The threads that work on a row together. Their rows are first(), first() + step(), ...; all of them must take part
/// in every reduce(), which gives the same bits to all.
template <int lanes>  // neighbours in a warp
struct LaneTeam {
  static constexpr int kSize = lanes;
  __device__ static int rank() { return static_cast<int>(threadIdx.x) % lanes; }
  __device__ static int64_t first() { return first_index() / lanes; }
  __device__ static int64_t step() { return index_step() / lanes; }
  template <class Combine, class A>
  __device__ static A reduce(A value) {
    return warp_reduce<Combine, lanes>(value);
  }
};
using WarpTeam = LaneTeam<kWarp>;
struct BlockTeam {
  static constexpr int kSize = kThreads;
  __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static int64_t first() { return blockIdx.x; }
  __device__ static int64_t step() { return gridDim.x; }
  template <class Combine, class A>
  __device__ static A reduce(A value) {
    return block_reduce<Combine>(value);
  }
};

struct Smallest {
  template <class T>
  __device__ static T combine(T a, T b) {
    return b < a ? b : a;
  }
};

/// Sum of term(i) over 0 <= i < count, in every thread of the team.
template <class Team, class Term>
__device__ auto team_sum(int64_t count, const Term& term) {
  decltype(term(count)) sum(0);
  for (int64_t i = Team::rank(); i < count; i += Team::kSize) sum += term(i);
  return Team::template reduce<Sum>(sum);
}

/// Starts one of two instances of a kernel, that for WarpTeam or that for BlockTeam, on rows of `length` elements.
template <class... Parameters, class... Arguments>
void launch_rows(Cuda context, int64_t rows, int64_t length, void (*by_warps)(Parameters...),
                 void (*by_blocks)(Parameters...), const Arguments&... arguments) {
  constexpr int64_t longest_of_warp = 1024, most_blocks = int64_t{1} << 16, warps = kThreads / kWarp;
  const bool is_short = length <= longest_of_warp;
  const int64_t blocks = std::min(is_short ? (rows + warps - 1) / warps : rows, most_blocks);
  if (blocks > 0)
    launch(context, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), is_short ? by_warps : by_blocks, arguments...);
}

/// Sets `bytes` bytes to `value`.
inline void set_bytes(Cuda context, void* to, int value, int64_t bytes) {
  if (bytes > 0)
    MARGAY_CUDA_CHECK(
        cudaMemsetAsync(to, value, static_cast<size_t>(bytes), static_cast<cudaStream_t>(context.stream)));
}

}  // namespace margay::cuda
