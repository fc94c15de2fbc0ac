#include "models/language_model.h"

#include "ops/linear.h"
#include "ops/view.h"

namespace margay {

std::vector<ParameterShape> parameter_shapes(const ModelConfig& config) {
  validate(config);
  Parameters parameters;
  make_backbone(config, Scope::of_shapes(parameters));
  std::vector<ParameterShape> shapes;
  for (const Parameter& parameter : parameters) shapes.push_back({parameter.name, parameter.value.shape()});
  return shapes;
}

LanguageModel::LanguageModel(const ModelConfig& config, uint64_t seed, DType dtype, Device device)
    : config_(config), device_(device) {
  validate(config);
  backbone_ = make_backbone(config, Scope(parameters_, seed, dtype, device));
}

int64_t LanguageModel::parameter_count() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.value.numel();
  return count;
}

Tensor LanguageModel::logits(const Tensor& ids) const {
  const Tensor h = backbone_->trunk(ids, {}, nullptr);
  return linear(backbone_->final_norm(h), backbone_->head(), {});
}

LinearCrossEntropy LanguageModel::loss(const Tensor& ids, const Tensor& rows, const Tensor& targets,
                                       const Tensor& rng) const {
  const Tensor h = backbone_->trunk(ids, {.rng = rng, .rows = rows}, nullptr);
  return linear_cross_entropy(backbone_->final_norm(h), backbone_->head(), targets);
}

ModelState LanguageModel::start(int64_t batch) const { return backbone_->start(batch); }

Tensor LanguageModel::step(const Tensor& ids, ModelState& state) const {
  const Tensor h = backbone_->trunk(ids, {}, &state);
  const Tensor last = select(h, 1, h.dim(1) - 1);
  return linear(backbone_->final_norm(last), backbone_->head(), {});
}

}  // namespace margay
