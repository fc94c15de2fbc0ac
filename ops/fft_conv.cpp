#include "ops/fft_conv.h"

#include <algorithm>

#include "engine/launch.h"
#include "ops/binary.h"
#include "ops/conv1d_causal.h"
#include "ops/pad.h"
#include "ops/view.h"

namespace margay {
namespace {

Samples samples();
const Op op{"fft_conv", samples};

Sample sample_of(const char* name, const Shape& u, int64_t K, bool skip, ConvMethod method = ConvMethod::fft) {
  Sample sample;
  sample.name = name;
  sample.inputs = {real(u), real({u[2], K})};
  if (skip) sample.inputs.push_back(real({u[2]}));
  sample.call = [skip, method](const Tensors& in) {
    return Tensors{fft_conv(in[0], in[1], skip ? in[2] : Tensor(), method)};
  };
  sample.tolerance = 2e-5;
  return sample;
}

Samples samples() {
  return {sample_of("one token", {3, 1, 2}, 1, true),
          sample_of("odd sizes", {3, 7, 5}, 7, true),
          sample_of("an even number of sequences", {2, 13, 18}, 13, false),
          sample_of("short filter", {5, 21, 3}, 4, true),
          sample_of("filter longer than u", {2, 9, 3}, 30, true),
          sample_of("more passes", {1, 150, 1}, 150, true),
          sample_of("radix 3", {2, 90, 2}, 90, false),
          sample_of("radix 5", {2, 70, 2}, 75, false),
          sample_of("several chunks of sequences", {70, 5, 1}, 5, true),
          sample_of("direct", {3, 7, 5}, 7, true, ConvMethod::direct),
          sample_of("direct, filter longer than u", {2, 5, 3}, 9, false, ConvMethod::direct),
          sample_of("by shape", {1, 300, 2}, 300, true, ConvMethod::by_shape),
          sample_of("no tokens", {2, 0, 4}, 3, true),
          sample_of("no channels", {2, 3, 0}, 3, true),
          sample_of("no sequences", {0, 3, 4}, 3, true)};
}

void check(const Tensor& u, const Tensor& kernel, const Tensor& D) {
  op.require_float("u", u);
  op.require(u.ndim() == 3, "u", u, "[B,L,C]");
  op.require_like("kernel", kernel, "u", u);
  op.require(kernel.ndim() == 2 && kernel.dim(0) == u.dim(2) && kernel.dim(1) > 0, "kernel", kernel,
             "[C,K], K > 0, C = last axis of u {}", u);
  if (!D.defined()) return;
  op.require_like("D", D, "u", u);
  op.require(D.shape() == Shape{u.dim(2)}, "D", D, "[C], C = last axis of u {}", u);
}

Tensor with_contiguous_channels(const Tensor& u) { return u.dim(2) <= 1 || u.strides()[2] == 1 ? u : u.contiguous(); }

// Filters of up to so many taps (reaching a token) are summed directly: measured with AVX-512, transforms take as long
// at about 96 taps where filter and sequence have one length, and longer for the same filter on longer sequences.
constexpr int64_t kMostDirectTaps = 96;

// The skip is part of tap 0.
Tensor direct(const Tensor& u, const Tensor& kernel, const Tensor& D) {
  if (!D.defined()) return conv1d_causal(u, kernel);
  return conv1d_causal(u, add(kernel, pad(unsqueeze(D, 1), 1, 0, kernel.dim(1) - 1)));
}

struct Call {
  kernels::FftConvShape shape;
  Saved u, kernel, D;
};

// What forward and backward kernels have in common.
template <class T, class Arguments>
void set_inputs(const Call& call, Arguments& a) {
  a.shape = call.shape;
  a.u = call.u->strided<T>().data;
  a.u_batch = call.u->strides()[0];
  a.u_row = call.u->strides()[1];
  a.kernel = call.kernel->strided<T>().data;
  a.kernel_channel = call.kernel->strides()[0];
  a.kernel_tap = call.kernel->strides()[1];
  a.D = call.D->defined() ? call.D->data<T>() : nullptr;
}

Tensors pull_back(const Call& call, const VjpContext& context) {
  const Tensor dy = with_contiguous_channels(context.cotangent());
  const Tensor &u = call.u, &kernel = call.kernel;
  const auto gradient = [&](size_t input, const Shape& shape) {
    return context.wanted(input) ? empty(shape, u.dtype(), u.device()) : Tensor();
  };
  const Tensor du = gradient(0, u.shape()), dD = gradient(2, {call.shape.C});
  // As the filters lie in memory: by channels or by taps.
  const int64_t C = kernel.dim(0), K = kernel.dim(1);
  const bool by_taps = kernel.strides()[0] == 1 && C > 1;
  Tensor dkernel = gradient(1, by_taps ? Shape{K, C} : Shape{C, K});
  if (dkernel.defined() && K > call.shape.K) dkernel.fill(0);
  if (dkernel.defined() && by_taps) dkernel = transpose(dkernel, 0, 1);
  Tensor workspace;
  op.launch<kernels::FftConvBwd>(u, [&]<class T>(kernels::FftConvBwd<T>& a) {
    workspace = empty({a.workspace_size(u.device().type, call.shape)}, acc_dtype(u.dtype()), u.device());
    set_inputs<T>(call, a);
    a.dy = dy.strided<T>().data;
    a.dy_batch = dy.strides()[0];
    a.dy_row = dy.strides()[1];
    a.du = du.defined() ? du.data<T>() : nullptr;
    if (dkernel.defined()) {
      a.dkernel = dkernel.strided<T>().data;
      a.dkernel_channel = dkernel.strides()[0];
      a.dkernel_tap = dkernel.strides()[1];
    }
    a.dD = dD.defined() ? dD.data<T>() : nullptr;
    a.workspace = workspace.data<acc_t<T>>();
  });
  return {du, dkernel, dD};
}

}  // namespace

Tensor fft_conv(const Tensor& u, const Tensor& kernel, const Tensor& D, ConvMethod method) {
  check(u, kernel, D);
  const int64_t L = u.dim(1), K = std::min(std::max<int64_t>(1, L), kernel.dim(1));
  const bool by_sums = method == ConvMethod::direct || (method == ConvMethod::by_shape && K <= kMostDirectTaps);
  if (by_sums) return direct(u, slice(kernel, 1, 0, K), D);
  const Call call{{u.dim(0), L, u.dim(2), K, kernels::fft_conv_size(u.device().type, L, K)},
                  Saved(with_contiguous_channels(u)),
                  Saved(kernel),
                  Saved(D.defined() ? D.contiguous() : D)};
  const Tensor y = empty_like(u);
  Tensor workspace;
  op.launch<kernels::FftConvFwd>(u, [&]<class T>(kernels::FftConvFwd<T>& a) {
    workspace = empty({a.workspace_size(u.device().type, call.shape)}, acc_dtype(u.dtype()), u.device());
    set_inputs<T>(call, a);
    a.y = y.data<T>();
    a.workspace = workspace.data<acc_t<T>>();
  });
  return op.record(
      y, {u, kernel, D}, [call](const VjpContext& context) { return pull_back(call, context); },
      CotangentLayout::strided);
}

}  // namespace margay
