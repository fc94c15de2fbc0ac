#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "engine/cuda/launch.cuh"
#include "engine/cuda/nest.cuh"

// Packs: neighbouring elements that a thread moves by one instruction. A GPU reaches the bandwidth of its memory only
// while tens of kilobytes are under way on every multiprocessor, which single elements are too small for. Kernels are
// written once, for packs of any size N; those of one element serve what is left over, and tensors that are not
// aligned.

namespace margay::cuda {

inline constexpr int kPackBytes = 16;  // the most that one instruction moves

/// Elements of the widest of these types, none of which moves more than kPackBytes at a time.
template <class... Ts>
inline constexpr int kPackOf = kPackBytes / static_cast<int>(std::max({sizeof(Ts)...}));

/// N elements, N a power of two. Those longer than kPackBytes are moved by several instructions.
template <class T, int N>
struct alignas(std::min<size_t>(kPackBytes, N * sizeof(T))) Pack {
  T element[N];
  HOST_DEVICE T& operator[](int k) { return element[k]; }
  HOST_DEVICE const T& operator[](int k) const { return element[k]; }
};

/// Whether packs of N elements can be moved from and to these addresses, of which some may be null.
template <int N, class... Ts>
HOST_DEVICE bool aligned(Ts*... data) {
  return (... && (reinterpret_cast<uintptr_t>(data) % alignof(Pack<std::remove_const_t<Ts>, N>) == 0));
}

/// A GPU ends a kernel that moves a pack elsewhere; the emulated one says so.
template <int N, class T>
__device__ void expect_aligned([[maybe_unused]] const T* data) {
#ifndef __CUDACC__
  if (!aligned<N>(data)) throw std::logic_error("a pack is not aligned");
#endif
}

/// The N elements from `from` on, which must be aligned.
template <int N, class T>
__device__ Pack<T, N> load(const T* from) {
  expect_aligned<N>(from);
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <class T, int N>
__device__ void store(T* to, const Pack<T, N>& pack) {
  expect_aligned<N>(to);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}
template <int N, class T>
__device__ Pack<T, N> repeat(T value) {
  Pack<T, N> pack;
  for (int k = 0; k < N; ++k) pack[k] = value;
  return pack;
}
/// The same from a row of a nest, which may be one element repeated.
template <int N, class T>
__device__ Pack<T, N> load(const T* from, bool repeated) {
  return repeated ? repeat<N>(*from) : load<N>(from);
}

/// f(a[k], b[k], ...) for every k.
template <class F, int N, class... Ts>
__device__ auto map(const F& f, const Pack<Ts, N>&... packs) {
  Pack<decltype(f(packs[0]...)), N> result;
  for (int k = 0; k < N; ++k) result[k] = f(packs[k]...);
  return result;
}

/// A walk over `count` elements: `whole` packs of N first, then one element at a time.
template <int N>
struct Packs {
  int64_t count, whole;

  /// Packs where `possible`.
  HOST_DEVICE Packs(int64_t count, bool possible) : count(count), whole(possible ? count / N : 0) {}
  /// Over a loop nest, whose operands start at `data`.
  template <int operands, class... Ts>
  Packs(const Nest<operands>& nest, Ts*... data) : Packs(nest.count, fit(nest, data...)) {}

  /// Whether the offsets of the element that a pack begins with tell those of all: packs do not leave a row of the
  /// nest, and lie side by side in every operand; where it is only read (const), a row may also be one element
  /// repeated. Of more `data` than operands, the rest has the strides of the last.
  template <int operands, class... Ts>
  static bool fit(const Nest<operands>& nest, Ts*... data) {
    static_assert(operands <= sizeof...(Ts));
    const auto operand_fits = [&]<class T>(int operand, T* start) {
      if (std::is_const_v<T> && nest.repeats(operand)) return true;
      return nest.has_rows_of(operand, N) && aligned<N>(start);
    };
    int operand = 0;
    return (nest.ndim == 1 || nest.size[nest.ndim - 1] % N == 0) &&
           (... && operand_fits(std::min(operand++, operands - 1), data));
  }

  /// Threads that have something to do.
  int64_t threads() const { return std::max(whole, count - whole * N); }

  /// Calls body.template operator()<M>(i) for elements i ... i + M - 1 that together are all, in steps of `step`.
  template <class Body>
  __device__ void walk(int64_t first, int64_t step, const Body& body) const {
    for (int64_t i = first; i < whole; i += step) body.template operator()<N>(i * N);
    for (int64_t i = whole * N + first; i < count; i += step) body.template operator()<1>(i);
  }
  /// By all threads of the grid.
  template <class Body>
  __device__ void walk(const Body& body) const {
    walk(first_index(), index_step(), body);
  }
};

/// Starts a kernel that walks over `packs`, its first argument.
template <int N, class... Parameters, class... Arguments>
void launch_packs(Cuda context, const Packs<N>& packs, void (*kernel)(Packs<N>, Parameters...),
                  const Arguments&... arguments) {
  launch_elements(context, packs.threads(), kernel, packs, arguments...);
}

}  // namespace margay::cuda
