#include "tasks/train/optimizer.h"

#include <cmath>

#include "engine/profiler.h"
#include "engine/safetensors.h"
#include "ops/grad_norm.h"
#include "tasks/train/model_file.h"

namespace margay {

Optimizer::Optimizer(const Parameters& parameters, const TrainConfig& config) : config_(config) {
  for (const Parameter& parameter : parameters) {
    const bool decays = parameter.decay || config.decay_groups == "zoology";
    names_.push_back(parameter.name);
    values_.push_back(parameter.value);
    m_.push_back(zeros_like(parameter.value));
    v_.push_back(zeros_like(parameter.value));
    rules_.push_back({.weight_decay = decays ? config.weight_decay : 0, .max_lr = parameter.max_lr});
  }
}

std::array<double, 4> Optimizer::hyper(int64_t step, double lr) const {
  const auto& [beta1, beta2] = config_.betas;
  const auto t = static_cast<double>(step + 1);
  return {lr, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t), 1};
}

Tensor Optimizer::apply(const Tensor& hyper, const Tensor& loss) {
  const ProfileScope profile("optimizer");
  const NoGrad no_grad;
  Tensors gradients;
  for (const Tensor& value : values_) gradients.push_back(value.grad());
  const Tensor norm = global_norm(gradients);
  hyper.view({}, {}, 3).copy_from(clip_coefficient(norm, config_.grad_clip, loss));
  adamw_step(values_, gradients, m_, v_, rules_, hyper, {config_.betas[0], config_.betas[1], config_.eps});
  forget_gradients();
  return norm;
}

void Optimizer::forget_gradients() {
  for (Tensor& value : values_) value.zero_grad();
}

void Optimizer::save(const std::string& path) const {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < names_.size(); ++i) {
    tensors.push_back({names_[i] + ".m", m_[i]});
    tensors.push_back({names_[i] + ".v", v_[i]});
  }
  save_safetensors(path, tensors);
}

void Optimizer::load(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  std::vector<std::string> names;
  for (size_t i = 0; i < names_.size(); ++i) {
    for (const auto& [suffix, moment] : {std::pair(".m", m_[i]), std::pair(".v", v_[i])}) {
      names.push_back(names_[i] + suffix);
      moment.copy_from(load_like(file, names.back(), moment));
    }
  }
  require_only(file, names);
}

}  // namespace margay
