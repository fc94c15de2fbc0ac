#include "models/residual_stream.h"

#include "ops/binary.h"
#include "ops/layer_norm.h"

namespace margay {

Tensor ResidualStream::add_and_norm(const LayerNorm& norm) {
  if (!h.defined()) return norm(r);
  const Tensors sum_and_norm = add_layer_norm(h, r, norm.weight, norm.bias);
  r = sum_and_norm[0];
  h = {};
  return sum_and_norm[1];
}

Tensor ResidualStream::add_and_norm(const RmsNorm& norm) {
  r = sum();
  h = {};
  return norm(r);
}

void ResidualStream::mix(const Mixer& mixer, const Tensor& x, const ForwardContext& context, MixerState* state) {
  h = mixer.forward(x, context, state);
  r = context.read(r);
}

Tensor ResidualStream::sum() const { return h.defined() ? add(r, h) : r; }

}  // namespace margay
