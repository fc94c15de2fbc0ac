#include "tasks/train/process_memory.h"

#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace margay {

int64_t peak_rss_bytes() {
  // Not getrusage(): its figure survives exec, so a process would inherit the peak of the one that started it.
  constexpr std::string_view key = "VmHWM:";
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with(key)) continue;
    const size_t digits = line.find_first_of("0123456789");
    int64_t kibibytes = 0;
    if (digits != line.npos) std::from_chars(line.data() + digits, line.data() + line.size(), kibibytes);
    return kibibytes * 1024;
  }
  return 0;
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace margay
