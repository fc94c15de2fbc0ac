#pragma once
#include <cstdint>

#include "ops/cpu/order.h"

namespace margay::kernels {

/// The k >= 1 largest values met so far, largest first, and where they stood; of equals the one met first. A value that
/// does not beat the last of them costs one comparison.
template <class T>
struct Largest {
  T* values;  // [k]
  int32_t* indices;
  int64_t k, kept = 0;

  void add(T value, int32_t index) {
    if (kept == k && (value <= values[k - 1] || !greater(value, values[k - 1]))) return;
    int64_t place = kept < k ? kept++ : k - 1;
    for (; place > 0 && greater(value, values[place - 1]); --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = value;
    indices[place] = index;
  }
};

}  // namespace margay::kernels
