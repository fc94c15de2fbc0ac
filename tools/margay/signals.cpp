#include "tools/margay/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace margay::cli {
namespace {

std::atomic<int> noted{0};
static_assert(std::atomic<int>::is_always_lock_free, "signal handlers may touch only lock-free atomics");

void note(int signal) {
  if (noted.exchange(signal) != 0) ::_exit(128 + signal);
}

}  // namespace

void note_stop_signals() {
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

int stop_signal() { return noted.load(); }

}  // namespace margay::cli
