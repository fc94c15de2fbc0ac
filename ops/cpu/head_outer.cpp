#include "ops/head_outer.h"
#include "engine/parallel.h"

namespace margay::kernels {
namespace {

constexpr int64_t kGrain = 16384;  // products a piece

// Calls body.template operator()<E>(row) for every row, in parallel; E is the size of a head, or 0 for one that has no
// code of its own.
template <class Body>
void for_rows(Cpu cpu, const HeadShape& s, const Body& body) {
  const auto rows = [&]<int E>() {
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, s.channels() * s.head_dim));
    parallel_ranges(cpu, s.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) body.template operator()<E>(row);
    });
  };
  switch (s.head_dim) {
    case 1:
      return rows.template operator()<1>();
    case 2:
      return rows.template operator()<2>();
    case 4:
      return rows.template operator()<4>();
    default:
      return rows.template operator()<0>();
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const HeadOuter<T>& args) {
  const HeadShape& s = args.shape;
  for_rows(cpu, s, [&]<int E>(int64_t row) {
    const int64_t e = E > 0 ? E : s.head_dim;
    const T *const a = args.a + row * args.a_row, *const b = args.b + row * args.b_row;
    T* const y = args.y + row * s.heads * e * e;
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < e; ++i)
        for (int64_t j = 0; j < e; ++j) y[(h * e + i) * e + j] = a[h * e + i] * b[h * e + j];
  });
}

template <class T>
void run(Cpu cpu, const HeadProduct<T>& args) {
  const HeadShape& s = args.shape;
  for_rows(cpu, s, [&]<int E>(int64_t row) {
    const int64_t e = E > 0 ? E : s.head_dim;
    const T *const a = args.a + row * args.a_row, *const m = args.m + row * s.heads * e * e;
    T* const y = args.y + row * s.heads * e;
    const int64_t along_i = args.transposed ? 1 : e, along_j = args.transposed ? e : 1;
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t j = 0; j < e; ++j) {
        T sum = 0;
        for (int64_t i = 0; i < e; ++i) sum += a[h * e + i] * m[h * e * e + i * along_i + j * along_j];
        y[h * e + j] = sum;
      }
  });
}

template void run(Cpu, const HeadOuter<float>&);
template void run(Cpu, const HeadOuter<double>&);
template void run(Cpu, const HeadProduct<float>&);
template void run(Cpu, const HeadProduct<double>&);

}  // namespace margay::kernels
