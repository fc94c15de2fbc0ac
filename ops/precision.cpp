#include "ops/precision.h"

namespace margay {
namespace {

thread_local Precision current = Precision::f32;

}  // namespace

Precision product_precision() { return current; }

PrecisionScope::PrecisionScope(Precision precision) : scope_(current, precision) {}

}  // namespace margay
