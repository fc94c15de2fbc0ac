#pragma once
#include <fmt/format.h>

#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/autograd.h"
#include "engine/error.h"
#include "engine/sample.h"
#include "engine/tensor.h"

template <>
struct fmt::formatter<margay::Tensor> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const margay::Tensor& tensor, Context& context) const {
    return fmt::formatter<std::string>::format(margay::describe(tensor), context);
  }
};

namespace margay {

/// Whether this build carries the samples of its ops: where the command or the tests are built.
#ifdef MARGAY_OP_SAMPLES
inline constexpr bool kOpSamples = true;
#else
inline constexpr bool kOpSamples = false;
#endif

/// An op: its name, its checks, its kernels' launch and its place on the tape. Every op is one static `Op` in its .cpp
/// file; all of them can be listed. Nothing is looked up by name when an op is called.
class Op {
 public:
  /// `samples` returns a Samples; it is called only by tests and tools, and left out of builds that have neither.
  template <class MakeSamples>
  Op(const char* name, MakeSamples samples) : Op(name, std::string_view(), pointer_to(samples)) {}
  /// An op without a gradient says why.
  template <class MakeSamples>
  Op(const char* name, NoGradient no_gradient, MakeSamples samples)
      : Op(name, no_gradient.reason, pointer_to(samples)) {}
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  const char* name() const { return name_; }
  /// Why there is no gradient; empty if there is one.
  std::string_view no_gradient_reason() const { return no_gradient_; }
  Samples samples() const { return samples_ ? samples_() : Samples{}; }
  /// Every op of the program, by name.
  static std::vector<const Op*> all();

  /// Throws OpError "name: arg must be WANTED, got (description of tensor)" unless `ok`. The rest is a fmt format.
  template <class... Args>
  void require(bool ok, const char* arg, const Tensor& got, fmt::format_string<Args...> wanted, Args&&... args) const {
    if (!ok) fail(arg, fmt::format(wanted, std::forward<Args>(args)...), describe(got));
  }
  template <class Value, class... Args>
  requires(!std::is_same_v<Value, Tensor>) void require(bool ok, const char* arg, const Value& got,
                                                        fmt::format_string<Args...> wanted, Args&&... args) const {
    if (!ok) fail(arg, fmt::format(wanted, std::forward<Args>(args)...), fmt::format("{}", got));
  }
  /// Throws OpError unless `other` has the dtype and device of `reference`.
  void require_like(const char* arg, const Tensor& other, const char* reference_arg, const Tensor& reference) const;
  /// Throws OpError unless the tensor is defined and of a float dtype.
  void require_float(const char* arg, const Tensor& tensor) const;
  /// The axis as 0 <= axis < ndim; throws OpError if it is out of range. Negative axes count from the end.
  int axis(int axis, const Tensor& tensor) const;

  /// Fills an argument struct Args<T>, T the dtype of `like`, and runs its kernel on the device of `like`.
  /// Args may name the dtypes it exists for (`using dtypes = Types<...>`, the same for every T); else the device's
  /// float dtypes count. Throws OpError where there is no kernel for device and dtype. Defined in engine/launch.h.
  template <template <class> class Args, class Fill>
  void launch(const Tensor& like, const Fill& fill) const;

  /// Puts `y` on the tape as the result of this op on `inputs`; returns it. `vjp` takes the cotangent of y
  /// (const Tensor&), or a VjpContext where it needs more, and returns one gradient per input.
  /// With CotangentLayout::strided the cotangents may be any views.
  template <class VjpFunction>
  Tensor record(Tensor y, std::initializer_list<Tensor> inputs, VjpFunction&& vjp,
                CotangentLayout layout = CotangentLayout::contiguous) const {
    return record(std::move(y), std::span(inputs.begin(), inputs.size()), std::forward<VjpFunction>(vjp), layout);
  }
  template <class VjpFunction>
  Tensor record(Tensor y, std::span<const Tensor> inputs, VjpFunction&& vjp,
                CotangentLayout layout = CotangentLayout::contiguous) const {
    record_outputs(std::span(&y, 1), inputs, std::forward<VjpFunction>(vjp), layout);
    return y;
  }
  /// The same for several outputs.
  template <class VjpFunction>
  Tensors record(Tensors outputs, std::initializer_list<Tensor> inputs, VjpFunction&& vjp,
                 CotangentLayout layout = CotangentLayout::contiguous) const {
    record_outputs(outputs, std::span(inputs.begin(), inputs.size()), std::forward<VjpFunction>(vjp), layout);
    return outputs;
  }
  template <class VjpFunction>
  Tensors record(Tensors outputs, std::span<const Tensor> inputs, VjpFunction&& vjp,
                 CotangentLayout layout = CotangentLayout::contiguous) const {
    record_outputs(outputs, inputs, std::forward<VjpFunction>(vjp), layout);
    return outputs;
  }
  /// Announces that this op changes `tensor` in place. Throws OpError for a result of recorded ops, or for a leaf while
  /// recording is on.
  void mutate(const char* arg, const Tensor& tensor) const;

 private:
  using SamplesFunction = Samples (*)();
  Op(const char* name, std::string_view no_gradient, SamplesFunction samples);
  template <class MakeSamples>
  static SamplesFunction pointer_to(MakeSamples samples) {
    if constexpr (kOpSamples) return samples;
    return nullptr;
  }
  [[noreturn]] void fail(const char* arg, const std::string& wanted, const std::string& got) const;
  void finish(std::span<const Tensor> outputs, std::span<const Tensor> inputs, Vjp vjp) const;
  void check_anomaly(std::span<const Tensor> outputs) const;
  void book(std::span<const Tensor> outputs, std::span<const Tensor> inputs) const;

  template <class VjpFunction>
  void record_outputs(std::span<const Tensor> outputs, std::span<const Tensor> inputs, VjpFunction&& vjp,
                      CotangentLayout layout) const {
    book(outputs, inputs);
    if (AnomalyMode::enabled()) check_anomaly(outputs);
    if (!Graph::recording(inputs)) return;
    if constexpr (std::is_invocable_v<VjpFunction, const Tensor&>) {
      Graph::record(
          name_, outputs, inputs,
          [vjp = std::forward<VjpFunction>(vjp)](const VjpContext& context) { return vjp(context.cotangent()); },
          layout);
    } else {
      Graph::record(name_, outputs, inputs, std::forward<VjpFunction>(vjp), layout);
    }
  }

  const char* name_;
  std::string_view no_gradient_;
  SamplesFunction samples_;
  const Op* next_;  // all ops form a list
};

}  // namespace margay
