#include "tasks/train/optimizer.h"

#include <fmt/format.h>

#include <cmath>

#include "engine/error.h"
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

double Optimizer::update(int64_t step, double lr) {
  const ProfileScope profile("optimizer");
  const NoGrad no_grad;
  Tensors gradients;
  for (const Tensor& value : values_) gradients.push_back(value.grad());
  const Tensor norm = global_norm(gradients);
  const double norm_value = norm.item();
  if (!std::isfinite(norm_value)) throw DivergedError(fmt::format("the norm of the gradients became {}", norm_value));

  const auto& [beta1, beta2] = config_.betas;
  const auto t = static_cast<double>(step + 1);
  const Tensor hyper =
      from_values({lr, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t), 1.0}, {4}, values_.front().device());
  hyper.view({}, {}, 3).copy_from(clip_coefficient(norm, config_.grad_clip));
  adamw_step(values_, gradients, m_, v_, rules_, hyper, {beta1, beta2, config_.eps});
  forget_gradients();
  return norm_value;
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
