#include "ops/landmark_pool.h"
#include "engine/parallel.h"

#include "ops/cpu/band_product.h"
#include "ops/cpu/head_rows.h"

namespace margay::kernels {
namespace {

/// Landmark m of a head of all batches.
struct Unit {
  int64_t batch, head, m;

  Unit(const LandmarkPoolShape& s, int64_t unit)
      : batch(unit / s.M() / s.H), head(unit / s.M() % s.H), m(unit % s.M()) {}
  int64_t filter(const LandmarkPoolShape& s) const { return s.filters == 1 ? 0 : head; }
};

// dk of a block: row j of it is F[W - 1 - j] dy.
template <class T>
void spread(const T* dy, const T* taps, int64_t W, int64_t dh, const Rows<T>& dk) {
  using Vec = simd::Vec<T>;
  for (int64_t j = 0; j < W; ++j) {
    const T tap = taps[W - 1 - j];
    for (int64_t d = 0; d < dh; d += Vec::size) (Vec::load(dy + d, dh - d) * tap).store(dk[j] + d, dh - d);
  }
}

// Tokens behind the last complete block.
template <class T>
void clear_rest(const LandmarkPoolBwd<T>& a) {
  const LandmarkPoolShape& s = a.shape;
  for (int64_t head = 0; head < s.B * s.H; ++head) {
    const Rows<T> dk = head_rows(a.dk, a.dk_strides, head / s.H, head % s.H);
    for (int64_t t = s.M() * s.W; t < s.L; ++t) std::fill_n(dk[t], s.dh, T(0));
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const LandmarkPoolFwd<T>& a) {
  const LandmarkPoolShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  for (int64_t f = 0; f < s.filters; ++f)
    std::reverse_copy(a.weight + f * s.W, a.weight + (f + 1) * s.W, a.workspace + f * s.W);
  parallel_ranges(cpu, s.units(), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, s.W * s.dh)),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit) {
                      const Unit at(s, unit);
                      const Rows<const T> k = head_rows(a.k, a.k_strides, at.batch, at.head).from(at.m * s.W);
                      band_product<Layout::rows>(BandProduct<T>{.a = a.workspace + at.filter(s) * s.W,
                                                                .a_row = 0,
                                                                .b = k.data,
                                                                .b_row = k.stride,
                                                                .c = a.y + unit * s.dh,
                                                                .c_row = 0,
                                                                .rows = 1,
                                                                .columns = s.dh,
                                                                .depth = s.W,
                                                                .band = kWholeBand});
                    }
                  });
}

// dk[m W + j] = F[W - 1 - j] dy[m];  dF[w] = sum over the blocks m of dy[m] . k[m W + W - 1 - w].
template <class T>
void run(Cpu cpu, const LandmarkPoolBwd<T>& a) {
  const LandmarkPoolShape& s = a.shape;
  if (s.work() < s.kSerialWork) cpu.threads = 1;
  const int64_t units = s.units(), pieces = s.pieces();
  parallel_for(cpu, pieces, [&](int64_t piece) {
    T* const sums = a.workspace + piece * s.filter_size();
    std::fill_n(sums, s.filter_size(), T(0));
    for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit) {
      const Unit at(s, unit);
      const T* const dy = head_rows(a.dy, a.dy_strides, at.batch, at.head)[at.m];
      const int64_t first = at.m * s.W, filter = at.filter(s) * s.W;
      if (a.dk) spread(dy, a.weight + filter, s.W, s.dh, head_rows(a.dk, a.dk_strides, at.batch, at.head).from(first));
      if (!a.dweight) continue;
      const Rows<const T> k = head_rows(a.k, a.k_strides, at.batch, at.head).from(first);
      for (int64_t j = 0; j < s.W; ++j) sums[filter + s.W - 1 - j] += dot(dy, k[j], s.dh);
    }
  });
  if (a.dk) clear_rest(a);
  if (!a.dweight) return;
  for (int64_t i = 0; i < s.filter_size(); ++i) {
    T sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += a.workspace[piece * s.filter_size() + i];
    a.dweight[i] = sum;
  }
}

template void run(Cpu, const LandmarkPoolFwd<float>&);
template void run(Cpu, const LandmarkPoolFwd<double>&);
template void run(Cpu, const LandmarkPoolBwd<float>&);
template void run(Cpu, const LandmarkPoolBwd<double>&);

}  // namespace margay::kernels
