#include "engine/op.h"

#include <algorithm>
#include <cstring>

#include "engine/profiler.h"

namespace margay {
namespace {

const Op* first_op = nullptr;  // constant-initialised: ready before any Op's constructor runs

}  // namespace

Op::Op(const char* name, std::string_view no_gradient, SamplesFunction samples)
    : name_(name), no_gradient_(no_gradient), samples_(samples), next_(std::exchange(first_op, this)) {}

std::vector<const Op*> Op::all() {
  std::vector<const Op*> ops;
  for (const Op* op = first_op; op; op = op->next_) ops.push_back(op);
  std::sort(ops.begin(), ops.end(), [](const Op* a, const Op* b) { return std::strcmp(a->name_, b->name_) < 0; });
  return ops;
}

void Op::fail(const char* arg, const std::string& wanted, const std::string& got) const {
  throw OpError(name_, arg, wanted, got);
}

void Op::require_like(const char* arg, const Tensor& other, const char* reference_arg, const Tensor& reference) const {
  if (!other.defined() || other.dtype() != reference.dtype() || other.device() != reference.device())
    fail(arg, fmt::format("of the dtype and device of {} {}", reference_arg, describe(reference)), describe(other));
}

void Op::require_float(const char* arg, const Tensor& tensor) const {
  require(tensor.defined() && is_float(tensor.dtype()), arg, tensor, "of a float dtype");
}

int Op::axis(int axis, const Tensor& tensor) const {
  const int index = axis < 0 ? axis + tensor.ndim() : axis;
  require(index >= 0 && index < tensor.ndim(), "axis", axis, "an axis of {}", tensor);
  return index;
}

void Op::mutate(const char* arg, const Tensor& tensor) const {
  require(tensor.defined() && tensor.is_leaf() && !(tensor.requires_grad() && grad_enabled()), arg, tensor,
          "a leaf, and recording off if it requires grad");
  tensor.storage()->bump_version();
}

void Op::check_anomaly(std::span<const Tensor> outputs) const {
  for (const Tensor& output : outputs)
    if (output.defined() && is_float(output.dtype()) && !backend(output.device()).all_finite(output.region()))
      throw DivergedError(fmt::format("{}: result {} holds NaN or infinity", name_, describe(output)));
}

// Results are allocated before a kernel is launched, and so outside of its OpScope. A result that is a view of an input
// stays booked under the op that made the memory.
void Op::book(std::span<const Tensor> outputs, std::span<const Tensor> inputs) const {
  bool moves_bytes = false;
  for (const Tensor& output : outputs) {
    if (!output.defined()) continue;
    const bool view = std::any_of(inputs.begin(), inputs.end(), [&](const Tensor& input) {
      return input.defined() && input.storage() == output.storage();
    });
    if (view) continue;
    output.storage()->book_under(name_);
    moves_bytes = true;
  }
  if (Profiler* const profiler = Profiler::current(); profiler && moves_bytes) {
    profiler->add_bytes(name_, inputs);
    profiler->add_bytes(name_, outputs);
  }
}

}  // namespace margay
