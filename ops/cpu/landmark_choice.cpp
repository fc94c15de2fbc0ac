#include "ops/landmark_choice.h"
#include "engine/parallel.h"

#include "ops/cpu/band_product.h"
#include "ops/cpu/head_rows.h"
#include "ops/cpu/largest.h"
#include "ops/cpu/workspace.h"

namespace margay::kernels {
namespace {

template <class T>
class Choice {
 public:
  explicit Choice(const LandmarkChoice<T>& a) : a_(a), s_(a.shape) {}

  // The lists of a tile of queries of a head.
  void choose(int64_t unit, T* scratch) const {
    const int64_t row = unit / s_.tiles(), first = unit % s_.tiles() * s_.tile;
    const int64_t count = std::min(s_.tile, s_.Lq - first), position = s_.offset() + first;
    const Rows<const T> q = head_rows(a_.q, a_.q_strides, row / s_.H, row % s_.H).from(first);
    const Rows<const T> landmarks = head_rows(a_.landmarks, a_.landmark_strides, row / s_.H, row % s_.H);
    int32_t* const blocks = a_.blocks + (row * s_.Lq + first) * a_.count;
    std::fill_n(blocks, count * a_.count, -1);
    Workspace<T> workspace{scratch};
    T *const transposed = workspace.take(s_.dh * kColumns), *const products = workspace.take(kRows * kColumns);
    const int64_t seen = (position + count - 1) / s_.W;  // by the last of them
    for (int64_t m = 0; m < seen; m += kColumns) {
      const int64_t columns = std::min(kColumns, seen - m);
      if (count > 1) pack_transposed(landmarks.from(m), columns, s_.dh, transposed, kColumns);
      // Queries before (m + 1) W see none of these landmarks.
      for (int64_t i = std::max<int64_t>(0, (m + 1) * s_.W - position); i < count; i += kRows) {
        const int64_t rows = std::min(kRows, count - i);
        if (count > 1) {
          multiply(q.from(i), rows, transposed, columns, products);
        } else {
          for (int64_t j = 0; j < columns; ++j) products[j] = dot(q[0], landmarks[m + j], s_.dh);
        }
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t before = (position + i + r) / s_.W;
          Largest<T> largest{workspace.next + (i + r) * a_.count, blocks + (i + r) * a_.count, a_.count,
                             std::min(m, a_.count)};
          for (int64_t j = 0; j < std::min(columns, before - m); ++j)
            largest.add(products[r * kColumns + j], static_cast<int32_t>(m + j));
        }
      }
    }
    for (int64_t i = 0; i < count; ++i)
      std::sort(blocks + i * a_.count, blocks + i * a_.count + std::min(a_.count, (position + i) / s_.W));
  }

 private:
  static constexpr int64_t kRows = LandmarkChoice<T>::kRows, kColumns = LandmarkChoice<T>::kColumns;

  void multiply(const Rows<const T>& q, int64_t rows, const T* transposed, int64_t columns, T* products) const {
    band_product<Layout::rows>(BandProduct<T>{.a = q.data,
                                              .a_row = q.stride,
                                              .b = transposed,
                                              .b_row = kColumns,
                                              .c = products,
                                              .c_row = kColumns,
                                              .rows = rows,
                                              .columns = columns,
                                              .depth = s_.dh,
                                              .band = kWholeBand});
  }

  const LandmarkChoice<T>& a_;
  const LandmarkShape& s_;
};

}  // namespace

template <class T>
void run(Cpu cpu, const LandmarkChoice<T>& a) {
  if (a.count == 0) return;
  const LandmarkShape& s = a.shape;
  if (s.B * s.H * s.Lq * s.M * s.dh < s.kSerialWork) cpu.threads = 1;
  const int64_t units = a.units(), pieces = a.pieces();
  const Choice<T> choice(a);
  parallel_for(cpu, pieces, [&](int64_t piece) {
    T* const scratch = a.workspace + piece * a.scratch_size();
    for (int64_t unit = piece * units / pieces; unit < (piece + 1) * units / pieces; ++unit)
      choice.choose(unit, scratch);
  });
}

template void run(Cpu, const LandmarkChoice<float>&);
template void run(Cpu, const LandmarkChoice<double>&);

}  // namespace margay::kernels
