#pragma once
#include "engine/scoped_value.h"

namespace margay {

/// While it lives, ops that this thread calls take it that the values of their index tensors are in range, where they
/// would wait for the device to find out. A loss takes it that every target is a class, so none is ignored. Other
/// values lead to undefined behaviour: who makes the scope has checked them.
class TrustedIndices {
 public:
  TrustedIndices();
  /// Whether one lives on this thread.
  static bool enabled();

 private:
  ScopedValue<bool> scope_;
};

}  // namespace margay
