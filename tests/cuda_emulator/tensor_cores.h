#pragma once
// Instructions of PTX that Margay calls by name (ops/cuda/mma.cuh), as the PTX ISA 8.0 describes them, section 9.7:
// which lane holds which elements, which addresses must be aligned, what may be read when.

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "tests/cuda_emulator/executor.h"

namespace cuda_emulator {

inline constexpr unsigned kLanes = 32;

/// The values of all lanes of a warp, which must all take part.
template <class T>
struct Lanes {
  T of[kLanes];

  explicit Lanes(const T& own) {
    static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
    std::memcpy(lane_slot(lane()), &own, sizeof(T));
    warp_barrier();
    for (unsigned i = 0; i < kLanes; ++i) {
      if (!lane_is_live(i)) throw std::logic_error("an instruction of a whole warp, without one of its lanes");
      std::memcpy(&of[i], lane_slot(i), sizeof(T));
    }
    warp_barrier();
  }
};

inline float bf16_half(uint32_t pair, unsigned upper) {
  const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 with C = D. With g = lane / 4 and t = lane % 4, a lane holds
/// A [16, 16]: registers 0 ... 3 at (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with the element to its
/// right; B [16, 8]: registers 0 and 1 at (2t, g), (2t + 8, g), each with the element below; C [16, 8]: (g, 2t),
/// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Factors {
    uint32_t a[4], b[2];
  };
  const Lanes<Factors> all({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const unsigned g = lane() / 4, t = lane() % 4;
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned row = g + e / 2 * 8, column = 2 * t + e % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned other = k % 8 / 2;
      const Factors &of_row = all.of[row % 8 * 4 + other], &of_column = all.of[column * 4 + other];
      c[e] += bf16_half(of_row.a[row / 8 + k / 8 * 2], k % 2) * bf16_half(of_column.b[k / 8], k % 2);
    }
  }
}

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16, with .trans where `transposed`. Lanes 8m ... 8m + 7 give the addresses of
/// the rows of matrix m; lane i receives in register m elements 2 (i % 4) and the next of its row i / 4, or of its
/// column i / 4.
inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("ldmatrix of a row that is not aligned");
  const Lanes<const void*> rows(row);
  const unsigned own = lane() / 4, first = 2 * (lane() % 4);
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned r = transposed ? first + e : own, c = transposed ? own : first + e;
      std::memcpy(&pair[e], static_cast<const char*>(rows.of[8 * m + r]) + 2 * c, 2);
    }
    std::memcpy(&out[m], pair, sizeof(pair));
  }
  warp_barrier();  // nobody writes there before all have read
}

/// Copies of a thread that it has not waited for, in groups; the last one is open. They are made as late as they may
/// be, so that who reads too early finds what was there before.
class AsyncCopies {
 public:
  void add(void* to, const void* from, bool exists) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (exists && reinterpret_cast<uintptr_t>(from) % 16 != 0))
      throw std::logic_error("cp.async of 16 bytes that are not aligned");
    groups_.back().push_back({to, exists ? from : nullptr});
  }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending) {
    while (groups_.size() > pending + 1) {
      for (const Copy& copy : groups_.front())
        copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
      groups_.erase(groups_.begin());
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
  };
  std::vector<std::vector<Copy>> groups_{1};
};

/// The copies of this thread. A kernel has to wait for all of them before it ends.
inline AsyncCopies& async_copies() {
  static std::vector<AsyncCopies> of_thread(1024);
  return of_thread[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
}

}  // namespace cuda_emulator
