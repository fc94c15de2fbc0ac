#pragma once
#include <array>
#include <string>
#include <vector>

#include "models/parameter.h"
#include "ops/adamw.h"
#include "tasks/config.h"

namespace margay {

/// AdamW over the parameters of a model (Loshchilov & Hutter 2019, arXiv:1711.05101), in one pass over all of them:
///
///     m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
///     p = p (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)        t = 1, 2, ...
///
/// The learning rate of a parameter is never above its max_lr.
/// With train.decay_groups = "standard" norms, biases and the time constants of state-space models do not decay; with
/// "zoology" everything does. A parameter that no gradient reached is left as it is.
class Optimizer {
 public:
  /// The parameters' tensors are shared with the model.
  Optimizer(const Parameters& parameters, const TrainConfig& config);

  /// What changes from step to step, for apply(): {lr, 1 - b1^t, 1 - b2^t, room for the clip coefficient}, t = step
  /// + 1.
  std::array<double, 4> hyper(int64_t step, double lr) const;
  /// Takes the step that `hyper` f64 [4] on the device tells, with the gradients that backward() has left, and forgets
  /// them; it does not wait for the device. Where the gradients' norm over all parameters exceeds train.grad_clip > 0,
  /// they are first scaled down to it. Where norm or loss (f64 [], undefined: none) is not finite, nothing changes.
  /// Returns the norm before, f64 []; hyper[3] becomes the clip coefficient, NaN where no step was taken.
  Tensor apply(const Tensor& hyper, const Tensor& loss = {});
  void forget_gradients();

  /// Moments of all parameters: NAME.m and NAME.v.
  void save(const std::string& path) const;
  /// Throws DataError unless the file holds just these moments in the right shapes.
  void load(const std::string& path);

 private:
  TrainConfig config_;
  std::vector<std::string> names_;
  Tensors values_, m_, v_;
  std::vector<AdamWRule> rules_;
};

}  // namespace margay
