#pragma once

namespace margay::cli {

/// From now on the first SIGINT or SIGTERM is only noted; the second ends the process at once, with 128 + its number.
void note_stop_signals();
/// The signal that was noted; 0 if none.
int stop_signal();

}  // namespace margay::cli
