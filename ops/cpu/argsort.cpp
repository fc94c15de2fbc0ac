#include "ops/argsort.h"

#include "ops/cpu/order.h"

namespace margay::kernels {
namespace {

constexpr int64_t kRun = 16;  // elements sorted by insertion before runs are merged

template <class Before>
void insertion_sort(int32_t* order, int64_t count, const Before& before) {
  for (int64_t i = 1; i < count; ++i) {
    const int32_t element = order[i];
    int64_t k = i;
    for (; k > 0 && before(element, order[k - 1]); --k) order[k] = order[k - 1];
    order[k] = element;
  }
}

// Merges the sorted ranges [begin, middle) and [middle, end); of equals those of the first range come first.
template <class Before>
void merge(const int32_t* from, int64_t begin, int64_t middle, int64_t end, int32_t* to, const Before& before) {
  int64_t left = begin, right = middle;
  for (int64_t k = begin; k < end; ++k) {
    const bool take_right = left == middle || (right < end && before(from[right], from[left]));
    to[k] = from[take_right ? right++ : left++];
  }
}

// Stable: short runs by insertion, then runs of twice the length by merging between the two buffers. The result ends up
// in `order`.
template <class Before>
void merge_sort(int32_t* order, int32_t* workspace, int64_t count, const Before& before) {
  for (int64_t begin = 0; begin < count; begin += kRun)
    insertion_sort(order + begin, std::min(kRun, count - begin), before);
  int32_t *from = order, *to = workspace;
  for (int64_t run = kRun; run < count; run *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * run) {
      const int64_t middle = std::min(begin + run, count), end = std::min(begin + 2 * run, count);
      merge(from, begin, middle, end, to, before);
    }
    std::swap(from, to);
  }
  if (from != order) std::copy_n(from, count, order);
}

}  // namespace

template <class T>
void run(Cpu cpu, const ArgSort<T>& a) {
  const int64_t rows_per_piece = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, a.N));
  parallel_ranges(cpu, a.rows, rows_per_piece, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* const x = a.x + r * a.N;
      int32_t *const order = a.y + r * a.N, *const workspace = a.workspace + r * a.N;
      for (int64_t i = 0; i < a.N; ++i) order[i] = static_cast<int32_t>(i);
      if (a.descending) {
        merge_sort(order, workspace, a.N, [x](int32_t i, int32_t j) { return greater(x[i], x[j]); });
      } else {
        merge_sort(order, workspace, a.N, [x](int32_t i, int32_t j) { return greater(x[j], x[i]); });
      }
    }
  });
}

template void run(Cpu, const ArgSort<float>&);
template void run(Cpu, const ArgSort<double>&);

}  // namespace margay::kernels
