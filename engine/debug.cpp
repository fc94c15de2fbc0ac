#include "engine/debug.h"

#include <fmt/format.h>

#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/autograd.h"

namespace margay::debug {
namespace {

void append(const std::vector<double>& values, const Shape& shape, int axis, int64_t start, int64_t limit,
            std::string& out) {
  if (axis == shape.ndim()) {
    out += fmt::format("{:.6g}", values[static_cast<size_t>(start)]);
    return;
  }
  int64_t stride = 1;
  for (int i = axis + 1; i < shape.ndim(); ++i) stride *= shape[i];
  out += '[';
  for (int64_t i = 0; i < shape[axis]; ++i) {
    if (i > 0) out += axis + 1 == shape.ndim() ? ", " : ",\n" + std::string(static_cast<size_t>(axis) + 1, ' ');
    if (shape[axis] > limit && i == limit / 2) {
      out += "...";
      i = shape[axis] - (limit - limit / 2) - 1;
      continue;
    }
    append(values, shape, axis + 1, start + i * stride, limit, out);
  }
  out += ']';
}

// All nodes behind `root`, each once, in the order they are found.
std::vector<const Node*> reachable(const Node* root) {
  std::vector<const Node*> found;
  std::unordered_map<const Node*, bool> seen;
  if (root) found.push_back(root);
  for (size_t i = 0; i < found.size(); ++i)
    for (const Node::Edge& edge : found[i]->inputs())
      if (edge.node && !std::exchange(seen[edge.node.get()], true)) found.push_back(edge.node.get());
  return found;
}

}  // namespace

std::string to_text(const Tensor& tensor, int64_t limit) {
  if (!tensor.defined()) return "none";
  std::string out = describe(tensor) + "\n";
  append(tensor.detach().to(DType::f64).to_vector<double>(), tensor.shape(), 0, 0, limit, out);
  return out;
}

std::string dot(const Tensor& root) {
  const auto top = Graph::node_of(root);
  std::string out = "digraph margay {\n  node [shape=box, fontname=\"sans-serif\"];\n";
  const std::vector<const Node*> nodes = reachable(top.get());
  std::unordered_map<const Node*, size_t> number;
  for (size_t i = 0; i < nodes.size(); ++i) {
    number[nodes[i]] = i;
    out += fmt::format("  n{} [label=\"{}\\n{}\"{}];\n", i, nodes[i]->op(), to_string(nodes[i]->output_shape(0)),
                       nodes[i]->sequence() == 0 ? ", style=filled, fillcolor=\"#e8f0fe\"" : "");
  }
  for (const Node* node : nodes)
    for (const Node::Edge& edge : node->inputs())
      if (edge.node) out += fmt::format("  n{} -> n{};\n", number[edge.node.get()], number[node]);
  return out + "}\n";
}

int64_t count_nodes(const Tensor& root) {
  const auto top = Graph::node_of(root);
  int64_t count = 0;
  for (const Node* node : reachable(top.get())) count += node->sequence() != 0;
  return count;
}

}  // namespace margay::debug
