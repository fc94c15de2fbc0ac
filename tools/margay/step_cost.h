#pragma once
#include <cstdint>

#include "models/language_model.h"

namespace margay::cli {

/// The size of a training step.
struct StepShape {
  int64_t examples = 1, columns = 1;  // [B, L]
  int64_t labels = 1;                 // scored positions of an example
};

/// Floating-point operations of the matrix products, filters and attention scores of a training step, a multiplication
/// and an addition counted as two, the backward pass as twice the forward pass. Everything else is small beside them.
double step_flops(const LanguageModel& model, const StepShape& shape);

/// Bytes of tensor memory that a training step needs.
struct StepMemory {
  int64_t parameters = 0, gradients = 0, moments = 0;  // AdamW keeps two moments
  int64_t activations = 0;                             // and whatever else lives at the worst moment

  int64_t total() const { return parameters + gradients + moments + activations; }
};

/// Measures steps on one and on two examples, on the model's device, and extrapolates to the batch.
StepMemory step_memory(const LanguageModel& model, const StepShape& shape);

}  // namespace margay::cli
