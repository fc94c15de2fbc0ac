#include "ops/label_rows.h"

#include "engine/launch.h"
#include "ops/trusted_indices.h"

namespace margay {

Tensor label_rows(const Op& op, const Tensor& targets, int64_t classes) {
  const int64_t R = targets.dim(0);
  const Tensor ids = targets.contiguous(), rows = empty({R}, DType::i32, targets.device());
  const Tensor result = empty({2}, DType::i64, targets.device());
  op.launch<kernels::FindLabels>(ids, [&]<class T>(kernels::FindLabels<T>& a) {
    a = {ids.data<T>(), rows.data<T>(), result.data<int64_t>(), R, classes};
  });
  if (TrustedIndices::enabled()) return rows;
  const std::vector<int64_t> found = result.to_vector<int64_t>();
  if (found[1] >= 0) {
    const Tensor bad = ids.view({}, {}, found[1]);
    op.require(false, "targets", fmt::format("{} at row {}", static_cast<int64_t>(bad.item()), found[1]),
               "{} (ignored) or in [0, {})", kIgnoredTarget, classes);
  }
  return rows.view({found[0]}, {1});
}

}  // namespace margay
