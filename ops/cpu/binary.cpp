#include "ops/binary.h"

#include "engine/strided.h"
#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

// A stretch of an operand: n elements `stride` apart, read a vector at a time.
template <class T>
struct Stretch {
  const T* p;
  int64_t stride;

  // Elements i, i + 1, ... of the n that are left.
  simd::Vec<T> load(int64_t i, int64_t n) const {
    using Vec = simd::Vec<T>;
    if (stride == 1) return Vec::load(p + i, n);
    if (stride == 0) return Vec(*p);
    Vec lanes(T(0));
    for (int lane = 0; lane < Vec::size && lane < n; ++lane) lanes.v[lane] = p[(i + lane) * stride];
    return lanes;
  }
  T operator[](int64_t i) const { return p[i * stride]; }
};

// Calls body(a, b, first, n) for stretches of both operands and of a contiguous result, where `first` is the index of
// the first of the n elements in the result.
template <class T, class Body>
void for_each_stretch(Cpu cpu, const BroadcastOperand<T>& a, const BroadcastOperand<T>& b, const Shape& shape,
                      const Body& body) {
  const StridedLoop<3> loop(shape, {a.strides, b.strides, contiguous_strides(shape)});
  const T* const a_data = a.data ? a.data : &a.scalar;
  const T* const b_data = b.data ? b.data : &b.scalar;
  loop.run(cpu, [&](const Offsets<3>& at, int64_t n) {
    body(Stretch<T>{a_data + at[0], loop.row_stride(0)}, Stretch<T>{b_data + at[1], loop.row_stride(1)}, at[2], n);
  });
}

// gradient = dy * factor, or += where `accumulate`; factor(i, n) gives the factors from element i on.
template <class T, class Factor>
void scale_cotangent(const T* dy, T* gradient, int64_t count, bool accumulate, const Factor& factor) {
  using Vec = simd::Vec<T>;
  for (int64_t i = 0; i < count; i += Vec::size) {
    const int64_t n = count - i;
    Vec g = Vec::load(dy + i, n) * factor(i, n);
    if (accumulate) g += Vec::load(gradient + i, n);
    g.store(gradient + i, n);
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const BinaryFwd<T>& args) {
  using Vec = simd::Vec<T>;
  std::visit(
      [&](const auto functor) {
        for_each_stretch(cpu, args.a, args.b, args.shape,
                         [&](Stretch<T> a, Stretch<T> b, int64_t first, int64_t count) {
                           T* const y = args.y + first;
                           for (int64_t i = 0; i < count; i += Vec::size)
                             functor.value(a.load(i, count - i), b.load(i, count - i)).store(y + i, count - i);
                         });
      },
      args.functor);
}

template <class T>
void run(Cpu cpu, const BinaryBwd<T>& args) {
  std::visit(
      [&](const auto functor) {
        for_each_stretch(
            cpu, args.a, args.b, args.shape, [&](Stretch<T> a, Stretch<T> b, int64_t first, int64_t count) {
              const T* const dy = args.dy + first;
              if (args.da)
                scale_cotangent(dy, args.da + first, count, args.accumulate_a,
                                [&](int64_t i, int64_t n) { return functor.da(a.load(i, n), b.load(i, n)); });
              if (args.db)
                scale_cotangent(dy, args.db + first, count, args.accumulate_b,
                                [&](int64_t i, int64_t n) { return functor.db(a.load(i, n), b.load(i, n)); });
            });
      },
      args.functor);
}

template <class T>
void run(Cpu cpu, const CompareFwd<T>& args) {
  std::visit(
      [&](const auto functor) {
        for_each_stretch(cpu, args.a, args.b, args.shape,
                         [&](Stretch<T> a, Stretch<T> b, int64_t first, int64_t count) {
                           for (int64_t i = 0; i < count; ++i) args.y[first + i] = functor.value(a[i], b[i]);
                         });
      },
      args.functor);
}

template void run(Cpu, const BinaryFwd<float>&);
template void run(Cpu, const BinaryFwd<double>&);
template void run(Cpu, const BinaryBwd<float>&);
template void run(Cpu, const BinaryBwd<double>&);
template void run(Cpu, const CompareFwd<float>&);
template void run(Cpu, const CompareFwd<double>&);
template void run(Cpu, const CompareFwd<int32_t>&);
template void run(Cpu, const CompareFwd<int64_t>&);

}  // namespace margay::kernels
