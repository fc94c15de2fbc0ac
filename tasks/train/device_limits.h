#pragma once
#include "engine/device.h"
#include "ops/precision.h"

namespace margay {

/// What a device can do, as measured: the roof over every op.
struct DeviceLimits {
  double bytes_per_second = 0;  ///< of a large copy, reading and writing counted
  double flops_per_second = 0;  ///< of a large product

  /// The time that the limits allow at best, by the time taken; 0 where there is nothing to say.
  double share(double bytes, double flops, double seconds) const;
};

/// Measures them with products of this precision. Takes some tenths of a second.
DeviceLimits measure_limits(Device device, Precision precision = Precision::f32);

}  // namespace margay
