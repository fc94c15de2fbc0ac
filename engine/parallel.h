#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/types.h"

namespace margay {

/// Threads that CPU kernels may use: the number of cores unless set, 1 in a build without threads. May exceed the
/// cores.
int num_threads();
void set_num_threads(int threads);

/// A function on pieces, its type forgotten.
struct PieceBody {
  const void* body;
  void (*call)(const void* body, int64_t piece);
};

/// parallel_for of more than one thread and piece.
void run_pieces(int threads, int64_t pieces, PieceBody body);

/// Calls body(piece) once for every piece in [0, pieces), in any order, on up to `cpu.threads` threads.
///
/// Results must be the same bits for any number of threads: so the caller cuts its work into pieces by shape only, each
/// piece writes its own memory, and sums over pieces are made afterwards in the order of the pieces.
/// `body` must not throw. Calls inside a piece run serially, and so do calls while another thread's are running.
template <class Body>
void parallel_for(Cpu cpu, int64_t pieces, const Body& body) {
  if (cpu.threads > 1 && pieces > 1) {
    const auto call = [](const void* b, int64_t piece) { (*static_cast<const Body*>(b))(piece); };
    run_pieces(static_cast<int>(std::min<int64_t>(cpu.threads, pieces)), pieces, {&body, call});
    return;
  }
  for (int64_t piece = 0; piece < pieces; ++piece) body(piece);
}

/// Cuts [0, count) into ranges of `grain` (the last may be shorter) and calls body(begin, end) for each, in parallel.
template <class Body>
void parallel_ranges(Cpu cpu, int64_t count, int64_t grain, const Body& body) {
  parallel_for(cpu, (count + grain - 1) / grain,
               [&](int64_t piece) { body(piece * grain, std::min(count, (piece + 1) * grain)); });
}

}  // namespace margay
