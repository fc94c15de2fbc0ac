#include "ops/unary.h"

#include "ops/cpu/simd_math.h"

namespace margay::kernels {
namespace {

constexpr int64_t kElementsPerPiece = 32768;

}  // namespace

template <class T>
void run(Cpu cpu, const UnaryFwd<T>& a) {
  using Vec = simd::Vec<T>;
  std::visit(
      [&](const auto functor) {
        parallel_ranges(cpu, a.n, kElementsPerPiece, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i += Vec::size)
            functor.value(Vec::load(a.x + i, end - i)).store(a.y + i, end - i);
        });
      },
      a.functor);
}

template <class T>
void run(Cpu cpu, const UnaryBwd<T>& a) {
  using Vec = simd::Vec<T>;
  std::visit(
      [&]<class Functor>(const Functor functor) {
        parallel_ranges(cpu, a.n, kElementsPerPiece, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i += Vec::size) {
            const int64_t n = end - i;
            Vec saved(T(0));
            if constexpr (Functor::saves != functors::Saves::nothing) saved = Vec::load(a.saved + i, n);
            Vec dx = Vec::load(a.dy + i, n) * functor.derivative(saved, saved);
            if (a.accumulate) dx += Vec::load(a.dx + i, n);
            dx.store(a.dx + i, n);
          }
        });
      },
      a.functor);
}

template void run(Cpu, const UnaryFwd<float>&);
template void run(Cpu, const UnaryFwd<double>&);
template void run(Cpu, const UnaryBwd<float>&);
template void run(Cpu, const UnaryBwd<double>&);

}  // namespace margay::kernels
