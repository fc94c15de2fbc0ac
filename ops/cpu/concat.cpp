#include "ops/concat.h"
#include "engine/parallel.h"

#include <cstring>

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const JoinRows<T>& a) {
  const int64_t rows_per_piece = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, a.row_length));
  parallel_ranges(cpu, a.rows, rows_per_piece, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* y = a.y + r * a.row_length;
      for (size_t i = 0; i < a.count; ++i) {
        const auto& part = a.parts[i];
        std::memcpy(static_cast<void*>(y), part.data + r * part.stride, static_cast<size_t>(part.length) * sizeof(T));
        y += part.length;
      }
    }
  });
}

template void run(Cpu, const JoinRows<float>&);
template void run(Cpu, const JoinRows<double>&);
template void run(Cpu, const JoinRows<bf16>&);
template void run(Cpu, const JoinRows<int32_t>&);
template void run(Cpu, const JoinRows<int64_t>&);
template void run(Cpu, const JoinRows<bool>&);

}  // namespace margay::kernels
