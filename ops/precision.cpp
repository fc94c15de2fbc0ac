#include "ops/precision.h"

#include <utility>

namespace margay {
namespace {

thread_local Precision current = Precision::f32;

}  // namespace

Precision product_precision() { return current; }

PrecisionScope::PrecisionScope(Precision precision) : before_(std::exchange(current, precision)) {}
PrecisionScope::~PrecisionScope() { current = before_; }

}  // namespace margay
