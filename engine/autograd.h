#pragma once
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "engine/scoped_value.h"
#include "engine/tensor.h"

namespace margay {

/// What a vector-Jacobian product is given: the cotangents of the op's outputs, and what is asked of it.
class VjpContext {
 public:
  VjpContext(std::span<const Tensor> cotangents, std::span<const Tensor> destinations, std::span<const bool> wanted)
      : cotangents_(cotangents), destinations_(destinations), wanted_(wanted) {}
  /// Loss gradient with respect to output `i`, contiguous unless the op was recorded with CotangentLayout::strided;
  /// undefined if none reached it.
  const Tensor& cotangent(size_t i = 0) const { return cotangents_[i]; }
  /// Whether the gradient of input `i` is wanted. What is returned for one that is not wanted is dropped.
  bool wanted(size_t i) const { return wanted_[i]; }
  /// The gradient gathered so far for input `i`, if the VJP may add its own into it: it then returns this very tensor.
  /// Undefined where there is none or somebody else holds it. Contiguous, with the shape of the input.
  const Tensor& destination(size_t i) const { return destinations_[i]; }

 private:
  std::span<const Tensor> cotangents_, destinations_;
  std::span<const bool> wanted_;
};

/// How a VJP wants its cotangents: row-major, or as views with any strides (ops that only move data, or whose kernels
/// read strides).
enum class CotangentLayout : uint8_t { contiguous, strided };

/// Returns one gradient per input: undefined for none, or of the input's shape, or of a shape to which the input was
/// broadcast (the walk sums it). Runs without recording.
using Vjp = std::function<Tensors(const VjpContext&)>;

/// A tensor kept for the backward pass, without its history. Reading it throws std::logic_error if it was changed in
/// place since. The list of `Saved` captures of a VJP is the list of what the op keeps alive.
class Saved {
 public:
  explicit Saved(const Tensor& tensor);
  const Tensor& operator*() const;
  const Tensor* operator->() const { return &**this; }
  operator const Tensor&() const { return **this; }  // NOLINT: stands for the tensor in calls

 private:
  Tensor tensor_;
  uint64_t version_ = 0;
};

/// One recorded op: where its inputs came from and how to pull a cotangent back to them.
class Node {
 public:
  /// Output `output` of `node`.
  struct Edge {
    std::shared_ptr<Node> node;
    int output = 0;
  };
  Node(std::string_view op, std::vector<Edge> inputs, Vjp vjp, CotangentLayout layout);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  std::string_view op() const { return op_; }
  const std::vector<Edge>& inputs() const { return inputs_; }
  /// Position in the order of recording; leaves have 0.
  uint64_t sequence() const { return sequence_; }
  /// Shape of output `i`.
  const Shape& output_shape(size_t i) const { return outputs_[i].shape; }

 private:
  friend class Graph;
  friend class Tensor;
  struct Output {
    Shape shape;
    DType dtype = DType::f32;
    Device device;
    std::vector<Tensor::Hook> hooks = {};
    std::weak_ptr<Tensor::Impl> retained = {};  // a result that asked for its gradient
    Tensor cotangent = {};                      // during a backward pass
  };
  /// What is left of a node whose last owner has gone.
  struct Remains {
    std::vector<Edge> inputs;
    Vjp vjp;
    std::vector<Output> outputs;
  };
  static thread_local std::vector<Remains>* graveyard_;

  std::string_view op_;
  std::vector<Edge> inputs_;
  Vjp vjp_;
  CotangentLayout layout_;
  std::vector<Output> outputs_;
  std::weak_ptr<Tensor::Impl> leaf_;  // the tensor that collects the gradient, if this node stands for a leaf
  uint64_t sequence_;
  const void* walk_ = nullptr;  // the walk in whose queue it waits
  bool released_ = false;
};

/// The recorded graph seen from a tensor.
class Graph {
 public:
  /// Makes `outputs` the results of one op with the given inputs. Call only if recording(inputs).
  static void record(std::string_view op, std::span<const Tensor> outputs, std::span<const Tensor> inputs, Vjp vjp,
                     CotangentLayout layout = CotangentLayout::contiguous);
  /// Whether an op on these inputs has to be recorded.
  static bool recording(std::span<const Tensor> inputs);
  /// The node that made `tensor` (or stands for the leaf); nullptr if nothing was recorded.
  static std::shared_ptr<Node> node_of(const Tensor& tensor);
  static void backward(const Tensor& root, const Tensor& seed, bool retain_graph);

 private:
  struct Walk;
  static Node::Edge edge_of(const Tensor& tensor);
  static void walk_ops(Walk& walk);
  static void run(Node& node, Walk& walk);
  static Tensors take_cotangents(Node& node, Walk& walk);
  static void deliver(const Node& from, const Node::Edge& edge, Tensor gradient, Walk& walk);
  static void finish(Walk& walk);
};

/// Whether this thread records ops.
bool grad_enabled();

/// Switches recording off (or, inside a VJP that recomputes, on again) while it lives.
class GradMode {
 public:
  explicit GradMode(bool enabled);

 private:
  ScopedValue<bool> scope_;
};

/// While it lives, ops on this thread are not recorded.
class NoGrad : GradMode {
 public:
  NoGrad() : GradMode(false) {}
};

/// While it lives, the first op whose result or gradient holds a NaN or an infinity throws DivergedError naming the op.
class AnomalyMode {
 public:
  AnomalyMode();
  static bool enabled();

 private:
  ScopedValue<bool> scope_;
};

}  // namespace margay
