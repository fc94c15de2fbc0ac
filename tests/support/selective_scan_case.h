#pragma once
#include <cstdint>

#include "ops/selective_scan.h"

namespace margay::test {

/// A shape that selective_scan is tested with.
struct SelectiveScanCase {
  int64_t batch, length, E, N;
  bool bare = false;  ///< without D, z, bias, softplus and initial states
};

/// Its arguments, made by random(shape, seed, low, high); the [B,L,..] ones are slices of wider buffers.
template <class Random>
SelectiveScan inputs_of(const SelectiveScanCase& c, const Random& random) {
  const auto slice_of = [&](int64_t width, uint64_t seed, double low, double high) {
    const Tensor wide = random({c.batch, c.length, width + 5}, seed, low, high);
    return wide.view({c.batch, c.length, width}, wide.strides(), 3);
  };
  SelectiveScan in{slice_of(c.E, 1, -1, 1), slice_of(c.E, 2, c.bare ? 0.01 : -4, c.bare ? 0.5 : 1),
                   random({c.E, c.N}, 3, -2, -0.01), slice_of(c.N, 4, -1, 1), slice_of(c.N, 5, -1, 1)};
  if (c.bare) return in;
  in.D = random({c.E}, 6, -1, 1);
  in.z = slice_of(c.E, 7, -3, 3);
  in.delta_bias = random({c.E}, 8, -1, 1);
  in.delta_softplus = true;
  in.initial = random({c.batch, c.E, c.N}, 9, -1, 1);
  return in;
}

}  // namespace margay::test
