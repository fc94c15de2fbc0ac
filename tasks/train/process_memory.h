#pragma once
#include <cstdint>

namespace margay {

/// The most memory of this process that was resident at once, in bytes; 0 where the system does not tell.
int64_t peak_rss_bytes();
/// Lets the peak start again from what is resident now, where the system can.
void reset_peak_rss();

}  // namespace margay
