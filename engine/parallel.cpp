#include "engine/parallel.h"

namespace margay {
namespace {

int default_threads() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

int threads_in_use = default_threads();

}  // namespace

int num_threads() { return threads_in_use; }

void set_num_threads(int threads) {
#ifdef _OPENMP
  threads_in_use = std::max(1, threads);
#else
  static_cast<void>(threads);
#endif
}

}  // namespace margay
