#pragma once
#include "engine/autograd.h"

namespace margay {

/// A tensor's place in the autograd graph; only tensors that take part in one have it.
struct Tensor::Autograd {
  bool requires_grad = false;  // of a leaf
  Tensor grad;
  std::shared_ptr<Node> node;       // that made this tensor; none for a leaf
  int output = 0;                   // which of the node's outputs it is
  std::weak_ptr<Node> leaf;         // stands for this leaf in graphs that are alive
  std::vector<Tensor::Hook> hooks;  // of a leaf; those of other tensors sit on the node
};

struct Tensor::Impl {
  std::shared_ptr<Storage> storage;
  DType dtype = DType::f32;
  Shape shape, strides;
  int64_t offset = 0;
  bool contiguous = true;
  std::unique_ptr<Autograd> autograd;
};

}  // namespace margay
