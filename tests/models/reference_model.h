#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/parameter.h"

namespace margay::test {

/// A second implementation of the backbones and their mixers, in plain f64 loops over one sequence, written from the
/// equations and sharing no code with the engine. The zoology backbone, attention and CAT are in reference_model.cpp,
/// others in files of their own.
class ReferenceModel {
 public:
  using Values = std::map<std::string, std::vector<double>>;
  using Rows = std::vector<std::vector<double>>;  // [token][channel]

  ReferenceModel(const ModelConfig& config, Values parameters) : config_(config), parameters_(std::move(parameters)) {}
  static Values values_of(const Parameters& parameters);

  /// Logits [token][vocabulary] of one sequence.
  Rows logits(const std::vector<int32_t>& ids) const;
  /// Mean cross-entropy over targets that are not -100.
  double loss(const std::vector<int32_t>& ids, const std::vector<int32_t>& targets) const;
  Values& parameters() { return parameters_; }

 private:
  const std::vector<double>& at(const std::string& name) const { return parameters_.at(name); }
  bool has(const std::string& name) const { return parameters_.count(name) > 0; }
  Rows linear(const Rows& x, const std::string& name) const;
  Rows layer_norm(const Rows& x, const std::string& name) const;
  Rows filter(const Rows& x, const std::string& name, int64_t only_head) const;
  Rows letter(const Rows& x, const std::string& mixer, char letter, const std::string& kind) const;
  Rows project(const Rows& x, const std::string& mixer, char letter) const;
  Rows embedded(const std::vector<int32_t>& ids, const std::string& tokens) const;
  Rows head(const Rows& x, const std::string& weight) const;
  Rows rms_norm(const Rows& x, const std::string& name) const;
  Rows rwkv(const Rows& x, const std::string& mixer) const;
  Rows mamba2(const Rows& x, const std::string& mixer) const;
  Rows mamba(const Rows& x, const std::string& mixer) const;
  Rows mixer(const Rows& x, const std::string& name, const std::string& kind) const;
  Rows softmax_attention(const Rows& x, const std::string& name, const std::string& kind) const;
  Rows linear_attention(const Rows& x, const std::string& name, const std::string& kind) const;
  Rows landmark_attention(const Rows& x, const std::string& name) const;  // reference_landmark.cpp
  Rows delta_rule(const Rows& x, const std::string& name, const std::string& kind) const;
  Rows filtered(const Rows& x, const std::string& name) const;
  std::vector<double> head_of(const Rows& rows, size_t t, size_t head) const;
  Rows mlp(const Rows& x, const std::string& name) const;
  // reference_neox.cpp
  Rows neox_logits(const std::vector<int32_t>& ids) const;
  Rows neox_letter(const Rows& x, const std::string& attention, char letter) const;
  // reference_long_conv.cpp
  Rows depthwise(const Rows& x, const std::string& name) const;
  Rows base_conv(const Rows& x, const std::string& name) const;
  Rows hyena(const Rows& x, const std::string& name) const;
  Rows s4d(const Rows& x, const std::string& name) const;
  Rows h3(const Rows& x, const std::string& name) const;
  std::vector<double> diagonal_ssm(const std::vector<double>& u, const std::string& name, size_t model,
                                   bool bilinear) const;
  void rotate(std::vector<double>& head, int64_t position) const;

  static void normalise(double* x, size_t n);

  ModelConfig config_;
  Values parameters_;
};

}  // namespace margay::test
