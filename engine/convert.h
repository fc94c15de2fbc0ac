#pragma once
#include <limits>
#include <type_traits>

#include "engine/types.h"

namespace margay {

/// A value in another element type, the same on every device. Floats become integers by cutting off the fraction; what
/// lies outside of the range becomes its nearest end, NaN becomes 0. Wide integers wrap. Booleans are "not zero".
template <class To, class From>
HOST_DEVICE inline To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, bf16>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return bf16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    constexpr To largest = std::numeric_limits<To>::max(), smallest = std::numeric_limits<To>::min();
    constexpr From end = -static_cast<From>(smallest);  // a power of two: exact, unlike `largest`
    if (value != value) return 0;
    return value >= end ? largest : value < -end ? smallest : static_cast<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace margay
