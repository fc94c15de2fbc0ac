#include "models/mixer.h"

#include "ops/embedding.h"
#include "ops/view.h"

namespace margay {

Tensor Mixer::forward_rows(const Tensor& x, const ForwardContext& context) const {
  return take_rows(reshape(forward(x, context, nullptr), {-1, x.dim(2)}), context.rows);
}

}  // namespace margay
