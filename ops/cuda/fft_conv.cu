#include "ops/fft_conv.h"

#include <bit>

#include "engine/cuda/launch.cuh"
#include "ops/cuda/fft.cuh"

namespace margay::kernels {
namespace {

// Method: ops/cpu/fft_conv.cpp. The unit of work is a vector of kLanes neighbouring channels of a sequence: its numbers
// of a token are one sector of memory. A block brings a vector into shared memory, through all passes, and back, so
// that memory is read and written once. Vectors of more points than fit are cut into parts, a block for each, by passes
// over global memory before and after.

using fft::Complex;
using fft::Roots;

constexpr int kLanes = FftConvRounds<float>::kLanes;
constexpr int kThreads = 512;  // of the largest block

/// What all transforms of an operator share.
template <class A>
struct Frame {
  int64_t n, C, vectors;
  int64_t first_sequence;  // of the round
  Roots<A> roots;

  __device__ int64_t channel(int64_t unit, int lane) const { return unit % vectors * kLanes + lane; }
  __device__ int64_t sequence(int64_t unit) const { return first_sequence + unit / vectors; }
  __device__ int64_t point(int64_t unit, int64_t j, int lane) const { return (unit * n + j) * kLanes + lane; }
};

/// Rows of numbers of every channel; distances in elements.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t sequence = 0, row = 0, channel = 0;
  int64_t count = 0;
  T* skip = nullptr;  // [C], of row 0
};

/// Where transforms take their points from: rows, or points in memory.
template <class T>
struct Source {
  using A = acc_t<T>;
  Rows<const T> rows;
  const Complex<A>* points = nullptr;

  __device__ Complex<A> load(const Frame<A>& f, int64_t unit, int64_t j, int lane) const {
    if (points) return points[f.point(unit, j, lane)];
    const int64_t c = f.channel(unit, lane);
    if (c >= f.C || j >= rows.count) return {A(0), A(0)};
    const T* const at = rows.data + f.sequence(unit) * rows.sequence + j * rows.row + c * rows.channel;
    A low(*at);
    if (j == 0 && rows.skip) low += A(rows.skip[c]);
    return Complex<A>{low, j + f.n < rows.count ? A(at[f.n * rows.row]) : A(0)} * f.roots(j);
  }
};

/// Where they go to. Rows without data are dropped.
template <class T>
struct Sink {
  using A = acc_t<T>;
  Rows<T> rows;
  Complex<A>* points = nullptr;

  __device__ void store(const Frame<A>& f, int64_t unit, int64_t j, int lane, Complex<A> value) const {
    if (points) {
      points[f.point(unit, j, lane)] = value;
      return;
    }
    const int64_t c = f.channel(unit, lane);
    if (c >= f.C || j >= rows.count) return;
    value = fft::times_conj(value, f.roots(j));
    if (j == 0 && rows.skip) rows.skip[c] = T(value.re);
    if (!rows.data) return;
    T* const at = rows.data + f.sequence(unit) * rows.sequence + j * rows.row + c * rows.channel;
    *at = T(value.re);
    if (j + f.n < rows.count) at[f.n * rows.row] = T(value.im);
  }
};

/// What happens to spectra, which only the leaves of the passes see.
enum class Work : uint8_t {
  keep,       // they go to the sink, divided by n
  filter,     // times those of the filters
  correlate,  // their product with conjugate signals replaces the signals; they are multiplied by conjugate filters
  finish,     // the source holds spectra
};

template <class A>
struct Spectra {
  const Complex<A>* filters = nullptr;  // [vectors, n, kLanes]
  Complex<A>* signals = nullptr;        // [units, n, kLanes] or null
};

template <class A>
struct SharedPoints {
  Complex<A> at[FftConvRounds<A>::kSharedPoints * kLanes];
};

// A block per part of 2^log_points points.
template <class T, Work work>
__global__ void __launch_bounds__(kThreads)
    transform(Frame<acc_t<T>> f, Source<T> in, Sink<T> out, Spectra<acc_t<T>> spectra, int log_points, bool returns) {
  using A = acc_t<T>;
  Complex<A>* const x = cuda::dynamic_shared<SharedPoints<A>>().at;
  const int points = 1 << log_points, rest = log_points % 3;
  const int64_t parts = f.n >> log_points, unit = blockIdx.x / parts, begin = blockIdx.x % parts * points;
  const auto for_each = [&](int count, const auto& body) {
    for (int i = static_cast<int>(threadIdx.x); i < count * kLanes; i += static_cast<int>(blockDim.x))
      body(i / kLanes, i % kLanes);
    __syncthreads();
  };
  const auto pass = [&]<int R, bool backward>(int log_length) {
    for_each(points / R, [&](int i, int lane) {
      fft::pass<R, backward>(
          i, log_length, f.roots, [&](int64_t j) { return x[j * kLanes + lane]; },
          [&](int64_t j, Complex<A> value) { x[j * kLanes + lane] = value; });
    });
  };

  for_each(points, [&](int j, int lane) { x[j * kLanes + lane] = in.load(f, unit, begin + j, lane); });
  if (work != Work::finish) {
    if (rest == 1) pass.template operator()<2, false>(log_points);
    if (rest == 2) pass.template operator()<4, false>(log_points);
    for (int length = log_points - rest; length > 3; length -= 3) pass.template operator()<8, false>(length);
  }
  for_each(points / 8, [&](int i, int lane) {
    Complex<A> leaf[8];
    for (int q = 0; q < 8; ++q) leaf[q] = x[(i * 8 + q) * kLanes + lane];
    if (work != Work::finish) fft::butterfly<false>(leaf);
    const int64_t first = begin + i * 8;
    for (int q = 0; q < 8; ++q) {
      const int64_t filter = f.point(unit % f.vectors, first + q, lane);
      if (work == Work::keep) out.store(f, unit, first + q, lane, leaf[q] * (A(1) / static_cast<A>(f.n)));
      if (work == Work::filter) leaf[q] = leaf[q] * spectra.filters[filter];
      if (work == Work::correlate) {
        if (spectra.signals) {
          Complex<A>& signal = spectra.signals[f.point(unit, first + q, lane)];
          signal = fft::times_conj(leaf[q], signal);
        }
        leaf[q] = fft::times_conj(leaf[q], spectra.filters[filter]);
      }
    }
    if (work == Work::keep) return;
    fft::butterfly<true>(leaf);
    for (int q = 0; q < 8; ++q) x[(i * 8 + q) * kLanes + lane] = leaf[q];
  });
  if constexpr (work != Work::keep) {
    if (!returns) return;
    for (int length = 6; length <= log_points - rest; length += 3) pass.template operator()<8, true>(length);
    if (rest == 1) pass.template operator()<2, true>(log_points);
    if (rest == 2) pass.template operator()<4, true>(log_points);
    for_each(points, [&](int j, int lane) { out.store(f, unit, begin + j, lane, x[j * kLanes + lane]); });
  }
}

// A pass over blocks of 2^log_length points in global memory.
template <class T, int R, bool backward>
__global__ void __launch_bounds__(cuda::kThreads)
    outer_pass(Frame<acc_t<T>> f, Source<T> in, Sink<T> out, int64_t units, int log_length) {
  const int64_t butterflies = f.n / R;
  for (int64_t i = cuda::first_index(); i < units * butterflies * kLanes; i += cuda::index_step()) {
    const auto lane = static_cast<int>(i % kLanes);
    const int64_t unit = i / kLanes / butterflies;
    fft::pass<R, backward>(
        i / kLanes % butterflies, log_length, f.roots, [&](int64_t j) { return in.load(f, unit, j, lane); },
        [&](int64_t j, Complex<acc_t<T>> value) { out.store(f, unit, j, lane, value); });
  }
}

// quarter[k] = e^(2 pi i k / 4n).
template <class A>
__global__ void __launch_bounds__(cuda::kThreads) fill_roots(Complex<A>* quarter, int64_t n) {
  constexpr double half_pi = 1.5707963267948966192313216916398;
  for (int64_t k = cuda::first_index(); k < n; k += cuda::index_step()) {
    const double angle = half_pi * static_cast<double>(k) / static_cast<double>(n);
    quarter[k] = {static_cast<A>(std::cos(angle)), static_cast<A>(std::sin(angle))};
  }
}

// sums[i] = (after others: sums[i]) + the sum over sequences b of products[b size + i].
template <class A>
__global__ void __launch_bounds__(cuda::kThreads)
    add_products(const Complex<A>* products, int64_t sequences, int64_t size, bool after_others, Complex<A>* sums) {
  for (int64_t i = cuda::first_index(); i < size; i += cuda::index_step()) {
    Complex<A> sum = after_others ? sums[i] : Complex<A>{A(0), A(0)};
    for (int64_t b = 0; b < sequences; ++b) sum = sum + products[b * size + i];
    sums[i] = sum;
  }
}

/// The transforms of one call, and what they share in the workspace.
template <class T>
class Transforms {
 public:
  using A = acc_t<T>;

  template <class Arguments>
  Transforms(Cuda cuda, const Arguments& a) : cuda_(cuda), rounds_{a.shape} {
    auto* const roots = reinterpret_cast<Complex<A>*>(a.workspace);
    frame_ = {a.shape.n, a.shape.C, rounds_.vectors(), 0, {roots, a.shape.n}};
    filters_ = roots + a.shape.n;
    rest_ = filters_ + spectra_size();
    log_n_ = std::countr_zero(static_cast<uint64_t>(a.shape.n));
    log_points_ = std::countr_zero(static_cast<uint64_t>(rounds_.points()));
    cuda::launch_elements(cuda, a.shape.n, fill_roots<A>, roots, a.shape.n);
    const Rows<const T> taps{a.kernel, 0, a.kernel_tap, a.kernel_channel, a.shape.K, a.D};
    run<Work::keep>(1, {taps}, {{}, filters_}, filters_);
  }
  int64_t spectra_size() const { return frame_.vectors * frame_.n * kLanes; }
  /// The part of the workspace behind the spectra of the filters.
  Complex<A>* rest() const { return rest_; }

  /// Calls body(first sequence, sequences) for every round, at least once.
  template <class Body>
  void for_rounds(const Body& body) {
    do {
      const int64_t sequences = std::min(rounds_.sequences(), rounds_.s.B - frame_.first_sequence);
      body(frame_.first_sequence, sequences);
      frame_.first_sequence += rounds_.sequences();
    } while (frame_.first_sequence < rounds_.s.B);
    frame_.first_sequence = 0;
  }

  /// Does `work` on all channels of some sequences. `points`: memory for those of transforms that do not fit into a
  /// block; where the work begins or ends with points, these. `returns`: whether the results are wanted.
  template <Work work>
  void run(int64_t sequences, Source<T> in, Sink<T> out, Complex<A>* points, Complex<A>* signals = nullptr,
           bool returns = true) {
    const int64_t units = sequences * frame_.vectors;
    if (units == 0) return;
    if (work != Work::finish) {
      for (int length = log_n_; length > log_points_; length -= log_radix(length)) {
        outer<false>(units, in, {{}, points}, length);
        in = {{}, points};
      }
    }
    const bool outer_return = log_n_ > log_points_ && work != Work::keep && returns;
    const auto blocks = static_cast<unsigned>(units << (log_n_ - log_points_));
    const auto threads = static_cast<unsigned>(std::clamp(1 << log_points_, cuda::kWarp, kThreads));
    cuda::launch_shared(cuda_, dim3(blocks), dim3(threads), (sizeof(Complex<A>) * kLanes) << log_points_,
                        transform<T, work>, frame_, in, outer_return ? Sink<T>{{}, points} : out,
                        Spectra<A>{filters_, signals}, log_points_, returns);
    if (!outer_return) return;
    for (int cut = log_points_; cut < log_n_;) {
      // The blocks of the passes forwards, from the last to the first.
      int length = log_n_;
      while (length - log_radix(length) > cut) length -= log_radix(length);
      outer<true>(units, {{}, points}, length == log_n_ ? out : Sink<T>{{}, points}, length);
      cut = length;
    }
  }

 private:
  int log_radix(int length) const { return std::min(3, length - log_points_); }

  template <bool backward>
  void outer(int64_t units, const Source<T>& in, const Sink<T>& out, int length) {
    const auto start = [&](auto* kernel, int radix) {
      cuda::launch_elements(cuda_, units * kLanes * (frame_.n / radix), kernel, frame_, in, out, units, length);
    };
    if (log_radix(length) == 1) start(outer_pass<T, 2, backward>, 2);
    if (log_radix(length) == 2) start(outer_pass<T, 4, backward>, 4);
    if (log_radix(length) == 3) start(outer_pass<T, 8, backward>, 8);
  }

  Cuda cuda_;
  FftConvRounds<T> rounds_;
  Frame<A> frame_;
  Complex<A>*filters_, *rest_;
  int log_n_, log_points_;
};

}  // namespace

template <class T>
void run(Cuda cuda, const FftConvFwd<T>& a) {
  Transforms<T> transforms(cuda, a);
  const FftConvShape& s = a.shape;
  const Source<T> u{{a.u, a.u_batch, a.u_row, 1, s.L}};
  const Sink<T> y{{a.y, s.L * s.C, s.C, 1, s.L}};
  transforms.for_rounds(
      [&](int64_t, int64_t sequences) { transforms.template run<Work::filter>(sequences, u, y, transforms.rest()); });
}

template <class T>
void run(Cuda cuda, const FftConvBwd<T>& a) {
  using A = acc_t<T>;
  Transforms<T> transforms(cuda, a);
  const FftConvShape& s = a.shape;
  const int64_t size = transforms.spectra_size();
  const bool want_kernel = a.dkernel || a.dD;
  Complex<A>* const sums = transforms.rest();
  Complex<A>* const signals = sums + size;
  Complex<A>* const points = signals + size * FftConvRounds<T>{s}.sequences();
  const Source<T> u{{a.u, a.u_batch, a.u_row, 1, s.L}}, dy{{a.dy, a.dy_batch, a.dy_row, 1, s.L}};
  const Sink<T> du{{a.du, s.L * s.C, s.C, 1, s.L}};
  transforms.for_rounds([&](int64_t first, int64_t sequences) {
    if (want_kernel) transforms.template run<Work::keep>(sequences, u, {{}, signals}, signals);
    transforms.template run<Work::correlate>(sequences, dy, du, points, want_kernel ? signals : nullptr, a.du);
    if (want_kernel) cuda::launch_elements(cuda, size, add_products<A>, signals, sequences, size, first > 0, sums);
  });
  const Sink<T> taps{{a.dkernel, 0, a.dkernel_tap, a.dkernel_channel, s.K, a.dD}};
  if (want_kernel) transforms.template run<Work::finish>(1, {{}, sums}, taps, sums);
}

template void run(Cuda, const FftConvFwd<float>&);
template void run(Cuda, const FftConvFwd<double>&);
template void run(Cuda, const FftConvFwd<bf16>&);
template void run(Cuda, const FftConvBwd<float>&);
template void run(Cuda, const FftConvBwd<double>&);
template void run(Cuda, const FftConvBwd<bf16>&);

}  // namespace margay::kernels
