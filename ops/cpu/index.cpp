#include "ops/index.h"
#include "engine/parallel.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

constexpr int64_t kGrain = 16384;  // elements a piece

// Calls body(o, j, row) for rows = o * count + j, in pieces of about kGrain elements.
template <class Body>
void for_each_row(Cpu cpu, int64_t outer, int64_t count, int64_t row_length, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_length));
  parallel_ranges(cpu, outer * count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin, o = begin / count, j = begin % count; row < end; ++row) {
      body(o, j, row);
      if (++j == count) {
        j = 0;
        ++o;
      }
    }
  });
}

template <class T>
void copy_row(const T* from, int64_t count, T* to) {
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  } else {
    std::memcpy(static_cast<void*>(to), from, static_cast<size_t>(count) * sizeof(T));
  }
}

// Sorts the positions of all indices that are not negative by index, those of one index in their order.
// `order` takes the positions; behind them it has room for where each index starts. Returns how many there are.
int64_t sort_by_index(const int32_t* index, int64_t count, int64_t size, int32_t* order) {
  int64_t placed = 0;
  bool sorted = true;
  int32_t last = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (index[j] < 0) continue;
    sorted = sorted && index[j] >= last;
    last = index[j];
    order[placed++] = static_cast<int32_t>(j);
  }
  if (sorted) return placed;
  int32_t* const starts = order + count;
  std::fill_n(starts, size + 1, 0);
  for (int64_t j = 0; j < count; ++j)
    if (index[j] >= 0) ++starts[index[j] + 1];
  for (int64_t i = 0; i < size; ++i) starts[i + 1] += starts[i];
  for (int64_t j = 0; j < count; ++j)
    if (index[j] >= 0) order[starts[index[j]]++] = static_cast<int32_t>(j);
  return placed;
}

// sum[i] += sum over the occurrences k of dy[order[k], i]; one sum for each element, in the order of k.
template <class T>
void add_occurrences(const T* dy, const int32_t* order, int64_t occurrences, int64_t inner, T* sum) {
  using Vec = simd::Vec<T>;
  constexpr int64_t width = Vec::size;
  int64_t i = 0;
  for (; i + 4 * width <= inner; i += 4 * width) {
    Vec sums[4] = {T(0), T(0), T(0), T(0)};
    for (int64_t k = 0; k < occurrences; ++k)
      for (int v = 0; v < 4; ++v) sums[v] += Vec::load(dy + order[k] * inner + i + v * width);
    for (int v = 0; v < 4; ++v) (Vec::load(sum + i + v * width) + sums[v]).store(sum + i + v * width);
  }
  for (; i + width <= inner; i += width) {
    Vec sums(T(0));
    for (int64_t k = 0; k < occurrences; ++k) sums += Vec::load(dy + order[k] * inner + i);
    (Vec::load(sum + i) + sums).store(sum + i);
  }
  for (; i < inner; ++i) {
    T total = 0;
    for (int64_t k = 0; k < occurrences; ++k) total += dy[order[k] * inner + i];
    sum[i] += total;
  }
}

}  // namespace

template <class T>
void run(Cpu, const CheckIndex<T>& a) {
  const auto bad = [&](int32_t value) { return value < a.low || value >= a.high; };
  *a.first_bad = -1;
  constexpr int64_t block = 1024;  // tested as a whole first, without a branch an element
  for (int64_t begin = 0; begin < a.count; begin += block) {
    const int64_t end = std::min(a.count, begin + block);
    bool any = false;
    for (int64_t j = begin; j < end; ++j) any |= bad(a.index[j]);
    if (!any) continue;
    *a.first_bad = std::find_if(a.index + begin, a.index + end, bad) - a.index;
    return;
  }
}

template <class T>
void run(Cpu cpu, const TakeIndex<T>& a) {
  for_each_row(cpu, a.outer, a.count, a.inner, [&](int64_t o, int64_t j, int64_t row) {
    T* const y = a.y + row * a.inner;
    if (a.index[j] < 0) {
      std::fill_n(y, a.inner, T{});
    } else {
      copy_row(a.x + (o * a.size + a.index[j]) * a.inner, a.inner, y);
    }
  });
}

// The sorted occurrences are cut into pieces. A row that starts in a piece is written by it alone. What a piece has at
// its begin of a row that may have started before waits in `edges` and is added afterwards, piece by piece.
template <class T>
void run(Cpu cpu, const AddIndex<T>& a) {
  const int64_t occurrences = sort_by_index(a.index, a.count, a.size, a.order);
  const int64_t per_piece = AddIndex<T>::occurrences_per_piece(a.inner),
                edge_rows = AddIndex<T>::pieces(a.count, a.inner);
  const int64_t pieces = (occurrences + per_piece - 1) / per_piece;
  const auto row_of = [&](int64_t k) { return a.index[a.order[k]]; };
  const auto dx_of = [&](int64_t o, int64_t k) { return a.dx + (o * a.size + row_of(k)) * a.inner; };
  const auto edge_of = [&](int64_t o, int64_t piece) { return a.edges + (o * edge_rows + piece) * a.inner; };

  for_each_row(cpu, a.outer, pieces, std::min(occurrences, per_piece) * a.inner,
               [&](int64_t o, int64_t piece, int64_t) {
                 const int64_t begin = piece * per_piece, end = std::min(occurrences, begin + per_piece);
                 for (int64_t k = begin, next = k; k < end; k = next) {
                   while (next < end && row_of(next) == row_of(k)) ++next;
                   const bool edge = piece > 0 && k == begin;
                   if (edge) std::fill_n(edge_of(o, piece), a.inner, T(0));
                   add_occurrences(a.dy + o * a.count * a.inner, a.order + k, next - k, a.inner,
                                   edge ? edge_of(o, piece) : dx_of(o, k));
                 }
               });
  for_each_row(cpu, pieces > 1 ? a.outer : 0, 1, pieces * a.inner, [&](int64_t o, int64_t, int64_t) {
    for (int64_t piece = 1; piece < pieces; ++piece) {
      const T* const sum = edge_of(o, piece);
      T* const dx = dx_of(o, piece * per_piece);
      for (int64_t i = 0; i < a.inner; ++i) dx[i] += sum[i];
    }
  });
}

template <class T>
void run(Cpu cpu, const TakeAlong<T>& a) {
  for_each_row(cpu, a.outer, a.count, a.inner, [&](int64_t o, int64_t, int64_t row) {
    const T* const x = a.x + o * a.size * a.inner;
    for (int64_t i = 0; i < a.inner; ++i) a.y[row * a.inner + i] = x[a.index[row * a.inner + i] * a.inner + i];
  });
}

// A column i of `to` belongs to one piece, which adds to it in the order of j.
template <class T>
void run(Cpu cpu, const AddAlong<T>& a) {
  constexpr int64_t columns = 256;
  const int64_t pieces = (a.inner + columns - 1) / columns;
  for_each_row(cpu, a.outer, pieces, a.count * std::min(a.inner, columns), [&](int64_t o, int64_t piece, int64_t) {
    const int64_t begin = piece * columns, end = std::min(a.inner, begin + columns);
    T* const to = a.to + o * a.size * a.inner;
    for (int64_t j = 0; j < a.count; ++j) {
      const int64_t row = (o * a.count + j) * a.inner;
      for (int64_t i = begin; i < end; ++i) {
        T& sum = to[a.index[row + i] * a.inner + i];
        sum = T(acc_t<T>(sum) + acc_t<T>(a.from[row + i]));
      }
    }
  });
}

template void run(Cpu, const CheckIndex<int32_t>&);
template void run(Cpu, const TakeIndex<float>&);
template void run(Cpu, const TakeIndex<double>&);
template void run(Cpu, const TakeIndex<bf16>&);
template void run(Cpu, const TakeIndex<int32_t>&);
template void run(Cpu, const TakeIndex<int64_t>&);
template void run(Cpu, const TakeIndex<bool>&);
template void run(Cpu, const AddIndex<float>&);
template void run(Cpu, const AddIndex<double>&);
template void run(Cpu, const TakeAlong<float>&);
template void run(Cpu, const TakeAlong<double>&);
template void run(Cpu, const TakeAlong<bf16>&);
template void run(Cpu, const TakeAlong<int32_t>&);
template void run(Cpu, const TakeAlong<int64_t>&);
template void run(Cpu, const TakeAlong<bool>&);
template void run(Cpu, const AddAlong<float>&);
template void run(Cpu, const AddAlong<double>&);
template void run(Cpu, const AddAlong<bf16>&);
template void run(Cpu, const AddAlong<int32_t>&);
template void run(Cpu, const AddAlong<int64_t>&);

}  // namespace margay::kernels
