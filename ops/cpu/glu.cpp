#include "ops/glu.h"
#include "engine/parallel.h"

#include "ops/cpu/row_ops.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const GluFwd<T>& args) {
  using Vec = simd::Vec<T>;
  std::visit(
      [&](const auto functor) {
        parallel_ranges(cpu, args.rows, rows_per_piece(args.m), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const T *const a = args.x + row * 2 * args.m, *const b = a + args.m;
            for (int64_t i = 0; i < args.m; i += Vec::size) {
              const int64_t n = args.m - i;
              functor.value(Vec::load(a + i, n), Vec::load(b + i, n)).store(args.y + row * args.m + i, n);
            }
          }
        });
      },
      args.functor);
}

template <class T>
void run(Cpu cpu, const GluBwd<T>& args) {
  using Vec = simd::Vec<T>;
  std::visit(
      [&](const auto functor) {
        parallel_ranges(cpu, args.rows, rows_per_piece(args.m), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const T *const a = args.x + row * 2 * args.m, *const b = a + args.m;
            T *const da = args.dx + row * 2 * args.m, *const db = da + args.m;
            for (int64_t i = 0; i < args.m; i += Vec::size) {
              const int64_t n = args.m - i;
              const Vec dy = Vec::load(args.dy + row * args.m + i, n);
              const Vec first = Vec::load(a + i, n), second = Vec::load(b + i, n);
              (dy * functor.da(first, second)).store(da + i, n);
              (dy * functor.db(first, second)).store(db + i, n);
            }
          }
        });
      },
      args.functor);
}

template void run(Cpu, const GluFwd<float>&);
template void run(Cpu, const GluFwd<double>&);
template void run(Cpu, const GluBwd<float>&);
template void run(Cpu, const GluBwd<double>&);

}  // namespace margay::kernels
