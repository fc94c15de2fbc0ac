#pragma once
#include "engine/device.h"

namespace margay {

/// The axes of `from` in DeviceBackend::accumulate(to, from), told apart by whether they stay or are summed: an element
/// of `to` at sum(index * kept_to) gathers those of `from` at sum(index * kept_from) + sum(term * summed_from).
struct ReductionAxes {
  ReductionAxes(const Region& to, const Region& from) {
    const int lead = from.shape.ndim() - to.shape.ndim();
    for (int i = 0; i < from.shape.ndim(); ++i) {
      const bool stays = i >= lead && to.shape[i - lead] == from.shape[i];
      (stays ? kept : summed).push_back(from.shape[i]);
      (stays ? kept_from : summed_from).push_back(from.strides[i]);
      if (stays) kept_to.push_back(to.strides[i - lead]);
    }
  }
  Shape kept, kept_to, kept_from, summed, summed_from;
};

}  // namespace margay
