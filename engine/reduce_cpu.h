#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/device.h"
#include "engine/parallel.h"
#include "engine/reduction_axes.h"
#include "engine/scratch.h"
#include "engine/strided.h"

namespace margay {

/// Sums of one tensor's elements over some of its axes, for DeviceBackend::accumulate on the CPU. Long sums are cut
/// into chunks, which are summed in parallel and then added up in order: the same bits for any number of threads, and
/// an error that grows far slower than with the number of terms.
template <class T>
class Reduction {
 public:
  using Sum = acc_t<T>;
  static constexpr int64_t kWidth = 64;  // neighbouring results are summed side by side: columns are read in rows

  /// `to` += `from` summed; both as in DeviceBackend::accumulate.
  Reduction(const Region& to, const Region& from) : Reduction(to, from, ReductionAxes(to, from)) {}

  void run(Cpu cpu, CachingAllocator& allocator) const {
    if (terms_ == 0 || groups() == 0) return;
    if (chunks_ == 1) {
      parallel_for(cpu, groups(), [&](int64_t group) {
        Sum sums[kWidth] = {};
        add_chunk(group, 0, sums);
        add_to_results(group, sums);
      });
      return;
    }
    const Scratch scratch(allocator, static_cast<size_t>(groups() * chunks_ * kWidth) * sizeof(Sum));
    Sum* const partial = static_cast<Sum*>(scratch.data());
    parallel_for(cpu, groups() * chunks_, [&](int64_t piece) {
      Sum* const sums = partial + piece * kWidth;
      std::fill_n(sums, kWidth, Sum(0));
      add_chunk(piece / chunks_, piece % chunks_, sums);
    });
    parallel_for(cpu, groups(), [&](int64_t group) {
      Sum* const sums = partial + group * chunks_ * kWidth;
      for (int64_t chunk = 1; chunk < chunks_; ++chunk)
        for (int64_t i = 0; i < kWidth; ++i) sums[i] += sums[chunk * kWidth + i];
      add_to_results(group, sums);
    });
  }

 private:
  Reduction(const Region& to, const Region& from, const ReductionAxes& axes)
      : to_(static_cast<T*>(to.data)),
        from_(static_cast<const T*>(from.data)),
        results_(axes.kept, {axes.kept_to, axes.kept_from}),
        sums_(axes.summed, {axes.summed_from}),
        terms_(sums_.rows() * sums_.row_length()),
        groups_per_row_((results_.row_length() + kWidth - 1) / kWidth) {
    const int64_t side_by_side = std::clamp<int64_t>(results_.row_length(), 1, kWidth);
    chunk_ = std::clamp<int64_t>((int64_t{64} << 10) / side_by_side, 1024, 16384);
    chunks_ = (terms_ + chunk_ - 1) / chunk_;
  }

  int64_t groups() const { return results_.rows() * groups_per_row_; }
  int64_t first_of(int64_t group) const { return group % groups_per_row_ * kWidth; }
  int64_t count_of(int64_t group) const { return std::min(kWidth, results_.row_length() - first_of(group)); }

  void add_to_results(int64_t group, const Sum* sums) const {
    const int64_t stride = results_.row_stride(0);
    T* const y = to_ + results_.row_offsets(group / groups_per_row_)[0] + first_of(group) * stride;
    for (int64_t i = 0; i < count_of(group); ++i) y[i * stride] = T(Sum(y[i * stride]) + sums[i]);
  }

  // Adds the terms of one chunk to the sums of one group of results.
  void add_chunk(int64_t group, int64_t chunk, Sum* sums) const {
    const T* const x =
        from_ + results_.row_offsets(group / groups_per_row_)[1] + first_of(group) * results_.row_stride(1);
    const int64_t length = sums_.row_length();
    const int64_t end = std::min(terms_, (chunk + 1) * chunk_);
    for (int64_t term = chunk * chunk_; term < end;) {
      const int64_t column = term % length, n = std::min(length - column, end - term);
      add_row(x + sums_.row_offsets(term / length)[0] + column * sums_.row_stride(0), n, count_of(group), sums);
      term += n;
    }
  }

  void add_row(const T* x, int64_t n, int64_t count, Sum* sums) const {
    const int64_t along = sums_.row_stride(0), across = results_.row_stride(1);
    if (along == 1 && (count == 1 || across != 1)) {
      for (int64_t i = 0; i < count; ++i) sums[i] += sum_of_row(x + i * across, n);
    } else if (across == 1) {
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < count; ++i) sums[i] += Sum(x[k * along + i]);
    } else {
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < count; ++i) sums[i] += Sum(x[k * along + i * across]);
    }
  }

  // In lanes, since an addition that waits for the last one would take most of the time.
  static Sum sum_of_row(const T* x, int64_t n) {
    constexpr int64_t lanes = 32;
    Sum sums[lanes] = {};
    int64_t k = 0;
    for (; k + lanes <= n; k += lanes)
      for (int64_t i = 0; i < lanes; ++i) sums[i] += Sum(x[k + i]);
    for (int64_t i = 0; k + i < n; ++i) sums[i] += Sum(x[k + i]);
    for (int64_t half = lanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
  }

  T* to_;
  const T* from_;
  StridedLoop<2> results_;
  StridedLoop<1> sums_;
  int64_t terms_, groups_per_row_;
  int64_t chunk_ = 1, chunks_ = 1;  // terms in a chunk, chunks of a sum
};

}  // namespace margay
