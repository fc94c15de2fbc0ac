#include "ops/unary.h"
#include "engine/parallel.h"

#include "ops/cpu/lanes.h"

namespace margay::kernels {
namespace {

constexpr int64_t kElementsPerPiece = 32768;

}  // namespace

template <class T>
void run(Cpu cpu, const UnaryFwd<T>& a) {
  using L = Lanes<T>;
  std::visit(
      [&](const auto functor) {
        parallel_ranges(cpu, a.n, kElementsPerPiece, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i += L::size)
            L::store(a.y + i, end - i, functor.value(L::load(a.x + i, end - i)));
        });
      },
      a.functor);
}

template <class T>
void run(Cpu cpu, const UnaryBwd<T>& a) {
  using L = Lanes<T>;
  std::visit(
      [&]<class Functor>(const Functor functor) {
        parallel_ranges(cpu, a.n, kElementsPerPiece, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i += L::size) {
            const int64_t n = end - i;
            typename L::Type saved(T(0));
            if constexpr (Functor::saves != functors::Saves::nothing) saved = L::load(a.saved + i, n);
            auto dx = L::load(a.dy + i, n) * functor.derivative(saved, saved);
            if (a.accumulate) dx += L::load(a.dx + i, n);
            L::store(a.dx + i, n, dx);
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
