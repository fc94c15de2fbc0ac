#pragma once
#include <cstdint>

#include "engine/scoped_value.h"

namespace margay {

/// How matrix products of f32 tensors are computed. bf16: the factors are rounded to bf16 (to the nearest, ties to
/// even; subnormal numbers may count as 0) where the product is large enough for that to pay, by its shape alone; sums
/// and results stay f32.
enum class Precision : uint8_t { f32, bf16 };

/// Whether this CPU multiplies bf16: with AMX-BF16, or else AVX512-BF16, on Linux on x86-64. Where it does not, bf16
/// products are computed in f32. A GPU always does.
bool cpu_has_bf16_products();

/// The precision of the products of linear, matmul and linear_cross_entropy, and on a GPU of causal_attention, that
/// this thread calls, and of their gradients' products whenever those are made. f32 outside every PrecisionScope.
Precision product_precision();

/// Sets product_precision() of this thread while it lives.
class PrecisionScope {
 public:
  explicit PrecisionScope(Precision precision);

 private:
  ScopedValue<Precision> scope_;
};

}  // namespace margay
