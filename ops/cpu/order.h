#pragma once

namespace margay::kernels {

/// Whether a comes before b in descending order: a NaN is larger than every number and equal to a NaN.
template <class T>
bool greater(T a, T b) {
  return a > b || (a != a && b == b);
}

}  // namespace margay::kernels
