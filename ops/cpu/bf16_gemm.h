#pragma once
#include <cstdint>

#include "ops/cpu/gemm_kernel.h"

namespace margay::blas {

/// Instructions that multiply bf16 and sum in f32: AVX512-BF16, or the tiles of AMX, which are many times as fast.
enum class Bf16Unit : uint8_t { none, avx512, amx };

/// The best that this CPU and its operating system offer, found once. With AMX, the process has then asked for its
/// registers.
Bf16Unit bf16_unit();

/// The product with its factors rounded to bf16: to the nearest, ties to even; NaN stays NaN, subnormal numbers count
/// as 0. `unit` must be one that the CPU has.
void bf16_multiply(Bf16Unit unit, bool trans_a, bool trans_b, const Product<float>& product);

}  // namespace margay::blas
