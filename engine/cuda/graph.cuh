#pragma once
#include <functional>
#include <memory>

#include "engine/device.h"

namespace margay::cuda {

/// DeviceBackend::capture() of a backend whose device is current.
std::unique_ptr<DeviceGraph> capture(DeviceBackend& backend, std::shared_ptr<MemoryPool> pool,
                                     const std::function<void()>& work);

}  // namespace margay::cuda
