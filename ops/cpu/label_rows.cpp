#include "ops/label_rows.h"

namespace margay::kernels {

template <class T>
void run(Cpu, const FindLabels<T>& a) {
  int64_t count = 0, bad = -1;
  for (int64_t r = 0; r < a.R; ++r) {
    const T target = a.targets[r];
    if (target == kIgnoredTarget) continue;
    if (bad < 0 && (target < 0 || target >= a.classes)) bad = r;
    a.rows[count++] = static_cast<T>(r);
  }
  a.result[0] = count;
  a.result[1] = bad;
}

template void run(Cpu, const FindLabels<int32_t>&);

}  // namespace margay::kernels
