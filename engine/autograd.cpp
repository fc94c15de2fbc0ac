#include "engine/autograd.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "engine/error.h"
#include "engine/tensor_impl.h"

namespace margay {
namespace {

std::atomic<uint64_t> next_sequence{1};
thread_local bool recording_enabled = true;
thread_local bool anomaly_mode = false;

// Nodes whose last owner has gone wait here, so that a long chain is destroyed in a loop and not by recursion.
thread_local std::vector<std::shared_ptr<Node>>* graveyard = nullptr;

bool later(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) { return a->sequence() < b->sequence(); }

void check_finite(const Tensor& tensor, std::string_view op, std::string_view what) {
  if (tensor.defined() && is_float(tensor.dtype()) && !backend(tensor.device()).all_finite(tensor.region()))
    throw DivergedError(fmt::format("{}: {} {} holds NaN or infinity", op, what, describe(tensor)));
}

}  // namespace

bool grad_enabled() { return recording_enabled; }
GradMode::GradMode(bool enabled) : outer_(std::exchange(recording_enabled, enabled)) {}
GradMode::~GradMode() { recording_enabled = outer_; }
AnomalyMode::AnomalyMode() : outer_(std::exchange(anomaly_mode, true)) {}
AnomalyMode::~AnomalyMode() { anomaly_mode = outer_; }
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

Node::~Node() {
  std::vector<std::shared_ptr<Node>> pending;
  const bool outermost = graveyard == nullptr;
  if (outermost) graveyard = &pending;
  for (Edge& edge : inputs_)
    if (edge.node) graveyard->push_back(std::move(edge.node));
  vjp_ = nullptr;
  if (!outermost) return;
  while (!pending.empty()) {
    const std::shared_ptr<Node> last = std::move(pending.back());
    pending.pop_back();
  }
  graveyard = nullptr;
}

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
    leaf->outputs_.push_back({tensor.shape(), tensor.dtype(), tensor.device(), {}, {}});
    autograd.leaf = leaf;
  }
  return {leaf, 0};
}

void Graph::record(std::string_view op, std::span<const Tensor> outputs, std::span<const Tensor> inputs, Vjp vjp,
                   CotangentLayout layout) {
  std::vector<Node::Edge> edges;
  edges.reserve(inputs.size());
  for (const Tensor& input : inputs) edges.push_back(edge_of(input));
  const auto node = std::make_shared<Node>(op, std::move(edges), std::move(vjp), layout);
  for (const Tensor& output : outputs) {
    const int index = static_cast<int>(node->outputs_.size());
    node->outputs_.push_back({output.shape(), output.dtype(), output.device(), {}, {}});
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
  if (seed.defined() && (seed.shape() != root.shape() || seed.dtype() != root.dtype()))
    throw OpError("backward", "seed", describe(root), describe(seed));
  const NoGrad no_grad;
  std::vector<std::shared_ptr<Node>> queue;  // a heap: nodes recorded last are walked first
  std::shared_ptr<Node> node;
  try {
    deliver(edge_of(root), seed.defined() ? seed : full(root.shape(), 1, root.dtype(), root.device()), queue);
    while (!queue.empty()) {
      std::pop_heap(queue.begin(), queue.end(), later);
      node = std::move(queue.back());
      queue.pop_back();
      run(*node, retain_graph, queue);
    }
  } catch (...) {
    if (node) queue.push_back(std::move(node));
    for (const auto& waiting : queue) {
      waiting->queued_ = false;
      for (Node::Output& output : waiting->outputs_) output.cotangent = {};
    }
    throw;
  }
}

void Graph::run(Node& node, bool retain_graph, std::vector<std::shared_ptr<Node>>& queue) {
  node.queued_ = false;
  if (node.sequence_ == 0) return finish_leaf(node);
  if (node.released_)
    throw std::logic_error(fmt::format("{}: its graph was freed by an earlier backward; use retain_graph", node.op_));
  Tensors cotangents;
  for (Node::Output& output : node.outputs_) {
    Tensor cotangent = std::exchange(output.cotangent, {});
    if (cotangent.defined() && node.layout_ == CotangentLayout::contiguous) cotangent = cotangent.contiguous();
    for (const Tensor::Hook& hook : output.hooks)
      if (cotangent.defined())
        if (const Tensor replaced = hook(cotangent); replaced.defined()) cotangent = replaced;
    cotangents.push_back(std::move(cotangent));
  }
  const size_t inputs = node.inputs_.size();
  Tensors destinations(inputs), gradients;
  const auto wanted = std::make_unique<bool[]>(inputs);
  for (size_t i = 0; i < inputs; ++i) {
    const Node::Edge& edge = node.inputs_[i];
    wanted[i] = edge.node != nullptr;
    if (!wanted[i]) continue;
    const Tensor& gathered = edge.node->outputs_[static_cast<size_t>(edge.output)].cotangent;
    if (gathered.defined() && gathered.is_contiguous() && gathered.exclusive()) destinations[i] = gathered;
  }
  {
    const OpScope scope(node.op_);
    gradients = node.vjp_(VjpContext(cotangents, destinations, std::span<const bool>(wanted.get(), inputs)));
  }
  if (gradients.size() != inputs)
    throw std::logic_error(fmt::format("{}: {} gradients for {} inputs", node.op_, gradients.size(), inputs));
  if (!retain_graph) {
    node.released_ = true;
    node.vjp_ = nullptr;
  }
  cotangents.clear();
  for (size_t i = 0; i < inputs; ++i) {
    const bool already_added = destinations[i].defined() && gradients[i].same(destinations[i]);
    if (anomaly_mode) check_finite(gradients[i], node.op_, fmt::format("gradient of input {}", i));
    destinations[i] = {};
    if (wanted[i] && gradients[i].defined() && !already_added)
      deliver(node.inputs_[i], std::exchange(gradients[i], {}), queue);
  }
}

void Graph::deliver(const Node::Edge& edge, Tensor gradient, std::vector<std::shared_ptr<Node>>& queue) {
  Node::Output& output = edge.node->outputs_[static_cast<size_t>(edge.output)];
  Tensor& gathered = output.cotangent;
  DeviceBackend& device = backend(output.device);
  if (!gathered.defined()) {
    if (gradient.shape() == output.shape) {
      gathered = std::move(gradient);
    } else {
      gathered = zeros(output.shape, output.dtype, output.device);
      device.accumulate(gathered.region(), gradient.region());
    }
  } else {
    if (!gathered.exclusive()) gathered = gathered.clone();
    device.accumulate(gathered.region(), gradient.region());
  }
  if (!std::exchange(edge.node->queued_, true)) {
    queue.push_back(edge.node);
    std::push_heap(queue.begin(), queue.end(), later);
  }
}

void Graph::finish_leaf(Node& node) {
  Tensor leaf;
  leaf.impl_ = node.leaf_.lock();
  Tensor gradient = std::exchange(node.outputs_[0].cotangent, {});
  if (!leaf.defined()) return;
  for (const Tensor::Hook& hook : leaf.autograd().hooks)
    if (const Tensor replaced = hook(gradient); replaced.defined()) gradient = replaced;
  Tensor& grad = leaf.autograd().grad;
  if (grad.defined()) {
    if (!grad.exclusive()) grad = grad.clone();
    backend(grad.device()).accumulate(grad.region(), gradient.region());
  } else {
    grad = gradient.exclusive() && gradient.is_contiguous() ? std::move(gradient) : gradient.clone();
  }
}

}  // namespace margay
