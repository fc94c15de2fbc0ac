#pragma once
#include <algorithm>
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "engine/types.h"

namespace margay {

/// Threads that CPU kernels may use: 1 without OpenMP, else the number of cores unless set. May exceed the cores.
int num_threads();
void set_num_threads(int threads);

/// Calls body(piece) once for every piece in [0, pieces), in any order, on up to `cpu.threads` threads.
///
/// Results must be the same bits for any number of threads: so the caller cuts its work into pieces by shape only, each
/// piece writes its own memory, and sums over pieces are made afterwards in the order of the pieces.
/// `body` must not throw. Calls inside a piece run serially.
template <class Body>
void parallel_for([[maybe_unused]] Cpu cpu, int64_t pieces, const Body& body) {
#ifdef _OPENMP
  const int threads = static_cast<int>(std::min<int64_t>(cpu.threads, pieces));
  if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t piece = 0; piece < pieces; ++piece) body(piece);
    return;
  }
#endif
  for (int64_t piece = 0; piece < pieces; ++piece) body(piece);
}

/// Cuts [0, count) into ranges of `grain` (the last may be shorter) and calls body(begin, end) for each, in parallel.
template <class Body>
void parallel_ranges(Cpu cpu, int64_t count, int64_t grain, const Body& body) {
  parallel_for(cpu, (count + grain - 1) / grain,
               [&](int64_t piece) { body(piece * grain, std::min(count, (piece + 1) * grain)); });
}

}  // namespace margay
