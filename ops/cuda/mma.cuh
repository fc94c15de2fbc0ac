#pragma once
#include <cstddef>
#include <cstdint>

#include "engine/cuda/launch.cuh"

// Tensor cores, sm_80 and newer: the instructions that C++ has no words for. Matrices are spread over the lanes of a
// warp as the PTX ISA says of mma.m16n8k16; g = lane / 4 and t = lane % 4 below. All lanes must take part.

namespace margay::cuda {

/// Two numbers in one register, rounded to bf16; `low` is the one of the lower index.
__device__ inline uint32_t bf16_pair(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return bf16(low).bits | uint32_t{bf16(high).bits} << 16;
#endif
}

/// c += a b for a [16, 16] and b [16, 8] in bf16. c [16, 8] in f32: a lane holds (g, 2t), (g, 2t + 1), (g + 8, 2t) and
/// (g + 8, 2t + 1). a: pairs from (g, 2t), (g + 8, 2t), (g, 2t + 8) and (g + 8, 2t + 8) to the right, so two c side by
/// side are the a of another product. b: pairs from (2t, g) and (2t + 8, g) down.
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_emulator::mma_m16n8k16(c, a, b);
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8m + r gives the address of row r of matrix m, a
/// multiple of 16; out[m] is the pair from (g, 2t) to the right, or where `transposed` from (2t, g) down.
template <bool transposed>
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef __CUDACC__
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#else
  cuda_emulator::load_matrices(out, row, transposed);
#endif
}

/// Starts a copy of 16 bytes to shared memory, or of zeros unless `exists`. Both addresses are multiples of 16.
__device__ inline void start_copy(void* shared, const void* global, bool exists) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(exists ? 16 : 0)
      : "memory");
#else
  cuda_emulator::async_copies().add(shared, global, exists);
#endif
}
/// Ends a group of copies that this thread has started; it may have none.
__device__ inline void end_copy_group() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_emulator::async_copies().commit();
#endif
}
/// Waits for the copies of this thread but those of its last `pending` groups. Others see them after a barrier.
template <int pending>
__device__ inline void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  cuda_emulator::async_copies().wait(pending);
#endif
}

}  // namespace margay::cuda
