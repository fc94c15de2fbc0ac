#include "ops/where.h"

#include "engine/strided.h"

namespace margay::kernels {
namespace {

// An element as an unsigned integer of its size, which may stand for any type.
template <size_t bytes>
struct BitsOf;
template <>
struct BitsOf<1> {
  typedef uint8_t type __attribute__((may_alias));
};
template <>
struct BitsOf<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct BitsOf<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct BitsOf<8> {
  typedef uint64_t type __attribute__((may_alias));
};

// By bit masks, since compilers make branches of the conditional; repeated values are read once. Both let the loop be
// vectorised.
template <bool repeat_a, bool repeat_b, class T>
void choose_row(const bool* mask, const T* a, const T* b, T* y, int64_t count) {
  using Bits = typename BitsOf<sizeof(T)>::type;
  const auto* const flags = reinterpret_cast<const unsigned char*>(mask);
  const auto *const if_true = reinterpret_cast<const Bits*>(a), *const if_false = reinterpret_cast<const Bits*>(b);
  auto* const result = reinterpret_cast<Bits*>(y);
  const Bits first_a = *if_true, first_b = *if_false;
  for (int64_t i = 0; i < count; ++i) {
    const auto keep_a = static_cast<Bits>(0 - static_cast<Bits>(flags[i]));
    const Bits x = repeat_a ? first_a : if_true[i], z = repeat_b ? first_b : if_false[i];
    result[i] = static_cast<Bits>((x & keep_a) | (z & ~keep_a));
  }
}

template <class T>
void choose_strided(const bool* mask, const T* a, const T* b, T* y, int64_t count,
                    const std::array<int64_t, 3>& steps) {
  for (int64_t i = 0; i < count; ++i) y[i] = mask[i * steps[0]] ? a[i * steps[1]] : b[i * steps[2]];
}

}  // namespace

template <class T>
void run(Cpu cpu, const Where<T>& args) {
  const StridedLoop<4> loop(args.shape,
                            {contiguous_strides(args.shape), args.mask_strides, args.a_strides, args.b_strides});
  const std::array<int64_t, 3> steps{loop.row_stride(1), loop.row_stride(2), loop.row_stride(3)};
  const bool regular = steps[0] == 1 && (steps[1] == 0 || steps[1] == 1) && (steps[2] == 0 || steps[2] == 1);
  loop.run(cpu, [&](const Offsets<4>& at, int64_t count) {
    const bool* const mask = args.mask + at[1];
    const T *const a = args.a + at[2], *const b = args.b + at[3];
    T* const y = args.y + at[0];
    if (!regular) {
      choose_strided(mask, a, b, y, count, steps);
    } else if (steps[1] == 1) {
      steps[2] == 1 ? choose_row<false, false>(mask, a, b, y, count) : choose_row<false, true>(mask, a, b, y, count);
    } else {
      steps[2] == 1 ? choose_row<true, false>(mask, a, b, y, count) : choose_row<true, true>(mask, a, b, y, count);
    }
  });
}

template void run(Cpu, const Where<float>&);
template void run(Cpu, const Where<double>&);
template void run(Cpu, const Where<bf16>&);
template void run(Cpu, const Where<int32_t>&);
template void run(Cpu, const Where<int64_t>&);
template void run(Cpu, const Where<bool>&);

}  // namespace margay::kernels
