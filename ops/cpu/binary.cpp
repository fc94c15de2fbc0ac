#include "ops/binary.h"

#include <algorithm>

#include "engine/strided.h"
#include "ops/cpu/lanes.h"

namespace margay::kernels {
namespace {

// A stretch of an operand: elements `stride` apart, read a vector at a time.
template <class T>
struct Stretch {
  const T* p;
  int64_t stride;

  // Elements i, i + 1, ... of which n are left.
  typename Lanes<T>::Type load(int64_t i, int64_t n) const {
    if (stride == 1) return Lanes<T>::load(p + i, n);
    if (stride == 0) return *p;
    return gather(p + i * stride, stride, n);
  }
  T operator[](int64_t i) const { return p[i * stride]; }

 private:
  [[gnu::noinline]] static typename Lanes<T>::Type gather(const T* p, int64_t stride, int64_t n) {
    T lanes[Lanes<T>::size] = {};
    for (int64_t i = 0; i < std::min<int64_t>(n, Lanes<T>::size); ++i) lanes[i] = p[i * stride];
    return Lanes<T>::load(lanes, Lanes<T>::size);
  }
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
  using L = Lanes<T>;
  for (int64_t i = 0; i < count; i += L::size) {
    const int64_t n = count - i;
    auto g = L::load(dy + i, n) * factor(i, n);
    if (accumulate) g += L::load(gradient + i, n);
    L::store(gradient + i, n, g);
  }
}

}  // namespace

template <class T>
void run(Cpu cpu, const BinaryFwd<T>& args) {
  using L = Lanes<T>;
  std::visit(
      [&](const auto functor) {
        for_each_stretch(cpu, args.a, args.b, args.shape,
                         [&](Stretch<T> a, Stretch<T> b, int64_t first, int64_t count) {
                           T* const y = args.y + first;
                           for (int64_t i = 0; i < count; i += L::size)
                             L::store(y + i, count - i, functor.value(a.load(i, count - i), b.load(i, count - i)));
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
