#pragma once
#include "engine/device.h"

namespace margay::cuda {

/// DeviceBackend::fill, copy and accumulate, as work on the context's stream.
void fill(Cuda context, const Region& to, double value);
void copy(Cuda context, const Region& to, const Region& from);
/// `allocator` gives scratch memory for long sums.
void accumulate(Cuda context, const Region& to, const Region& from, CachingAllocator& allocator);
/// Sets *flag, which must be 0, to 1 if an element is NaN or infinite.
void find_non_finite(Cuda context, const Region& region, int32_t* flag);

}  // namespace margay::cuda
