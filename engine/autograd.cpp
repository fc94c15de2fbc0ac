#include "engine/autograd.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "engine/error.h"
#include "engine/profiler.h"
#include "engine/tensor_impl.h"

namespace margay {
namespace {

std::atomic<uint64_t> next_sequence{1};
thread_local bool recording_enabled = true;
thread_local bool anomaly_mode = false;

bool later(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) { return a->sequence() < b->sequence(); }

void check_finite(const Tensor& tensor, std::string_view op, std::string_view what) {
  if (tensor.defined() && is_float(tensor.dtype()) && !backend(tensor.device()).all_finite(tensor.region()))
    throw DivergedError(fmt::format("{}: {} {} holds NaN or infinity", op, what, describe(tensor)));
}

Tensor apply_hooks(const std::vector<Tensor::Hook>& hooks, Tensor gradient) {
  const std::vector<Tensor::Hook> now = hooks;  // a hook that runs may register another
  for (const Tensor::Hook& hook : now) {
    const Tensor replaced = hook(gradient);
    if (!replaced.defined()) continue;
    if (replaced.shape() != gradient.shape() || replaced.dtype() != gradient.dtype() ||
        replaced.device() != gradient.device())
      throw OpError("backward", "gradient returned by a hook", describe(gradient), describe(replaced));
    gradient = replaced.detach().contiguous();
  }
  return gradient;
}

// A tensor that may be changed in place: nobody else sees it, and no two of its elements share memory.
bool writable(const Tensor& tensor) { return tensor.exclusive() && tensor.is_contiguous(); }

bool are_views(std::span<const Tensor> tensors, std::span<const Tensor> of) {
  const auto is_view = [&](const Tensor& tensor) {
    return std::any_of(of.begin(), of.end(),
                       [&](const Tensor& other) { return other.defined() && other.storage() == tensor.storage(); });
  };
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& t) { return !t.defined() || is_view(t); });
}

void add_gradient(Tensor& sum, Tensor gradient) {
  if (!sum.defined()) {
    sum = std::move(gradient);
    return;
  }
  if (!writable(sum)) sum = sum.clone();
  backend(sum.device()).accumulate(sum.region(), gradient.region());
}

}  // namespace

bool grad_enabled() { return recording_enabled; }
GradMode::GradMode(bool enabled) : scope_(recording_enabled, enabled) {}
AnomalyMode::AnomalyMode() : scope_(anomaly_mode, true) {}
bool AnomalyMode::enabled() { return anomaly_mode; }

Saved::Saved(const Tensor& tensor)
    : tensor_(tensor.detach()), version_(tensor.defined() ? tensor.storage()->version() : 0) {}

const Tensor& Saved::operator*() const {
  if (tensor_.defined() && tensor_.storage()->version() != version_)
    throw std::logic_error(describe(tensor_) + " was changed in place after an op had saved it for its gradient");
  return tensor_;
}

Node::Node(std::string_view op, std::vector<Edge> inputs, Vjp vjp, CotangentLayout layout)
    : op_(op),
      inputs_(std::move(inputs)),
      vjp_(std::move(vjp)),
      layout_(layout),
      sequence_(inputs_.empty() ? 0 : next_sequence++) {}

thread_local std::vector<Node::Remains>* Node::graveyard_ = nullptr;

// Everything that may own further nodes is moved to a list of the outermost destructor, so that a long chain is
// destroyed in a loop and not by recursion.
Node::~Node() {
  std::vector<Remains> list;
  const bool outermost = graveyard_ == nullptr;
  if (outermost) graveyard_ = &list;
  graveyard_->push_back({std::move(inputs_), std::move(vjp_), std::move(outputs_)});
  if (!outermost) return;
  while (!list.empty()) {
    const Remains last = std::move(list.back());
    list.pop_back();
  }
  graveyard_ = nullptr;
}

/// One backward pass: what is still to be walked, and the gradients that are added to tensors at its end.
struct Graph::Walk {
  bool retain_graph = false;
  std::vector<std::shared_ptr<Node>> queue = {};  // a heap: nodes recorded last are walked first, with all cotangents
  std::vector<std::shared_ptr<Node>> leaves = {};
  std::vector<std::pair<Tensor, Tensor>> finished = {};  // tensors that collect a gradient, and the gradient

  // Nothing of a walk stays in the graph, however it ended.
  ~Walk() {
    for (const auto* nodes : {&queue, &leaves}) {
      for (const auto& node : *nodes) {
        node->walk_ = nullptr;
        for (Node::Output& output : node->outputs_) output.cotangent = {};
      }
    }
  }
};

bool Graph::recording(std::span<const Tensor> inputs) {
  return recording_enabled &&
         std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.defined() && t.requires_grad(); });
}

std::shared_ptr<Node> Graph::node_of(const Tensor& tensor) { return edge_of(tensor).node; }

Node::Edge Graph::edge_of(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.requires_grad()) return {};
  Tensor::Autograd& autograd = tensor.autograd();
  if (autograd.node) return {autograd.node, autograd.output};
  std::shared_ptr<Node> leaf = autograd.leaf.lock();
  if (!leaf) {
    leaf = std::make_shared<Node>("leaf", std::vector<Node::Edge>{}, nullptr, CotangentLayout::contiguous);
    leaf->leaf_ = tensor.impl_;
    leaf->outputs_.push_back({.shape = tensor.shape(), .dtype = tensor.dtype(), .device = tensor.device()});
    autograd.leaf = leaf;
  }
  return {leaf, 0};
}

void Graph::record(std::string_view op, std::span<const Tensor> outputs, std::span<const Tensor> inputs, Vjp vjp,
                   CotangentLayout layout) {
  std::vector<Node::Edge> edges;
  edges.reserve(inputs.size());
  for (const Tensor& input : inputs) edges.push_back(edge_of(input));
  for (const Tensor& output : outputs)
    if (output.requires_grad())
      throw std::logic_error(fmt::format("{}: its result {} is on the tape already", op, describe(output)));
  const auto node = std::make_shared<Node>(op, std::move(edges), std::move(vjp), layout);
  for (const Tensor& output : outputs) {
    const int index = static_cast<int>(node->outputs_.size());
    node->outputs_.push_back({.shape = output.shape(), .dtype = output.dtype(), .device = output.device()});
    if (!is_float(output.dtype())) continue;
    output.autograd().node = node;
    output.autograd().output = index;
  }
}

void Graph::backward(const Tensor& root, const Tensor& seed, bool retain_graph) {
  if (!root.defined() || !root.requires_grad())
    throw OpError("backward", "tensor", "the result of recorded ops", describe(root));
  if (!seed.defined() && root.numel() != 1)
    throw OpError("backward", "tensor", "of one element where no cotangent is given", describe(root));
  if (seed.defined() &&
      (seed.shape() != root.shape() || seed.dtype() != root.dtype() || seed.device() != root.device()))
    throw OpError("backward", "seed", describe(root), describe(seed));
  const NoGrad no_grad;
  const OpScope scope("backward");
  const ProfileScope profile("backward");
  Walk walk{.retain_graph = retain_graph};
  const Node::Edge edge = edge_of(root);
  deliver(*edge.node, edge, seed.defined() ? seed.detach() : full(root.shape(), 1, root.dtype(), root.device()), walk);
  walk_ops(walk);
  finish(walk);
}

// Leaves come last, and are only collected.
void Graph::walk_ops(Walk& walk) {
  while (!walk.queue.empty()) {
    std::pop_heap(walk.queue.begin(), walk.queue.end(), later);
    const std::shared_ptr<Node> node = std::move(walk.queue.back());
    walk.queue.pop_back();
    if (node->sequence_ == 0) {
      walk.leaves.push_back(node);
    } else {
      node->walk_ = nullptr;
      run(*node, walk);
    }
  }
}

Tensors Graph::take_cotangents(Node& node, Walk& walk) {
  Tensors cotangents;
  for (Node::Output& output : node.outputs_) cotangents.push_back(std::exchange(output.cotangent, {}));
  for (size_t i = 0; i < cotangents.size(); ++i) {
    Tensor& cotangent = cotangents[i];
    if (!cotangent.defined()) continue;
    const Node::Output& output = node.outputs_[i];
    if (node.layout_ == CotangentLayout::contiguous) cotangent = cotangent.contiguous();
    if (!output.hooks.empty()) cotangent = apply_hooks(output.hooks, std::move(cotangent));
    Tensor retained;
    retained.impl_ = output.retained.lock();
    if (retained.defined()) walk.finished.emplace_back(std::move(retained), cotangent);
  }
  return cotangents;
}

void Graph::run(Node& node, Walk& walk) {
  if (node.released_)
    throw std::logic_error(fmt::format("{}: its graph was freed by an earlier backward; use retain_graph", node.op_));
  Tensors cotangents = take_cotangents(node, walk);
  const size_t inputs = node.inputs_.size();
  Tensors destinations(inputs), gradients;
  const auto wanted = std::make_unique<bool[]>(inputs);
  for (size_t i = 0; i < inputs; ++i) {
    const Node::Edge& edge = node.inputs_[i];
    wanted[i] = edge.node != nullptr;
    if (!wanted[i]) continue;
    const Tensor& gathered = edge.node->outputs_[static_cast<size_t>(edge.output)].cotangent;
    if (gathered.defined() && writable(gathered)) destinations[i] = gathered;
  }
  {
    const OpScope scope(node.op_);
    const ProfileScope profile(node.op_, ScopeKind::op);
    gradients = node.vjp_(VjpContext(cotangents, destinations, std::span<const bool>(wanted.get(), inputs)));
  }
  if (gradients.size() != inputs)
    throw std::logic_error(fmt::format("{}: {} gradients for {} inputs", node.op_, gradients.size(), inputs));
  if (Profiler* const profiler = Profiler::current(); profiler && !are_views(gradients, cotangents)) {
    profiler->add_bytes(node.op_, cotangents);
    profiler->add_bytes(node.op_, gradients);
  }
  if (!walk.retain_graph) {
    node.released_ = true;
    node.vjp_ = nullptr;
  }
  cotangents.clear();
  for (size_t i = 0; i < inputs; ++i) {
    Tensor gradient = std::exchange(gradients[i], {});
    const bool already_added = destinations[i].defined() && gradient.same(destinations[i]);
    destinations[i] = {};
    if (!wanted[i] || !gradient.defined()) continue;
    if (anomaly_mode) check_finite(gradient, node.op_, fmt::format("gradient of input {}", i));
    if (!already_added) deliver(node, node.inputs_[i], std::move(gradient), walk);
  }
}

void Graph::deliver(const Node& from, const Node::Edge& edge, Tensor gradient, Walk& walk) {
  Node& node = *edge.node;
  Node::Output& output = node.outputs_[static_cast<size_t>(edge.output)];
  // A leaf that waits in the queue of an outer walk (a VJP that recomputes runs one inside) is finished there.
  if (node.walk_ && node.walk_ != &walk && node.sequence_ != 0)
    throw std::logic_error(fmt::format("{}: backward was called inside a backward over the same graph", node.op_));
  Shape spread;
  if (gradient.dtype() != output.dtype || gradient.device() != output.device ||
      !broadcast(output.shape, gradient.shape(), spread) || spread != gradient.shape())
    throw std::logic_error(fmt::format("{}: gave the gradient {} to a {}{}", from.op_, describe(gradient),
                                       name_of(output.dtype), to_string(output.shape)));
  if (!output.cotangent.defined() && gradient.shape() != output.shape)
    output.cotangent = zeros(output.shape, output.dtype, output.device);
  add_gradient(output.cotangent, std::move(gradient));
  if (node.walk_) return;
  walk.queue.push_back(edge.node);
  std::push_heap(walk.queue.begin(), walk.queue.end(), later);
  node.walk_ = &walk;
}

// In two rounds, so that a hook or an allocation that throws leaves every grad() as it was.
void Graph::finish(Walk& walk) {
  for (const auto& node : walk.leaves) {
    Tensor leaf, gradient = std::exchange(node->outputs_[0].cotangent, {});
    leaf.impl_ = node->leaf_.lock();
    if (!leaf.defined()) continue;
    if (!leaf.autograd().hooks.empty()) gradient = apply_hooks(leaf.autograd().hooks, std::move(gradient));
    walk.finished.emplace_back(std::move(leaf), std::move(gradient));
  }
  for (auto& [tensor, gradient] : walk.finished) {
    Tensor& grad = tensor.autograd().grad;
    Tensor& kept = grad.defined() ? grad : gradient;
    if (!writable(kept)) kept = kept.clone();
  }
  for (auto& [tensor, gradient] : walk.finished) add_gradient(tensor.autograd().grad, std::move(gradient));
}

}  // namespace margay
