#include "ops/vandermonde.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples kernel_samples();
const Op kernel_op{"vandermonde", kernel_samples};

Samples mode_samples();
const Op discretize_op{"ssm_discretize", no_grad("step mode only; training uses vandermonde"), mode_samples};

Samples step_samples();
const Op steps_op{"ssm_steps", no_grad("step mode only; training uses vandermonde"), step_samples};

Sample sample_of(const char* name, int64_t channels, int64_t pairs) {
  Sample sample;
  sample.name = name;
  sample.inputs = {real({channels}, -3, 0), real({channels, pairs, 2}), real({channels, pairs}, -2, 1),
                   real({channels, pairs}, -4, 4)};
  sample.tolerance = 3e-5;
  return sample;
}

Sample kernel_sample(const char* name, int64_t channels, int64_t pairs, int64_t length, Discretization discretization) {
  Sample sample = sample_of(name, channels, pairs);
  sample.call = [discretization, length](const Tensors& in) {
    return Tensors{vandermonde({in[0], in[1], in[2], in[3], discretization}, length)};
  };
  return sample;
}

Samples kernel_samples() {
  constexpr auto zoh = Discretization::zoh, bilinear = Discretization::bilinear;
  return {kernel_sample("zoh", 3, 5, 37, zoh),
          kernel_sample("bilinear", 3, 5, 37, bilinear),
          kernel_sample("several restarts", 1, 2, 700, zoh),
          kernel_sample("several restarts, bilinear", 1, 2, 600, bilinear),
          kernel_sample("one tap", 2, 4, 1, zoh),
          kernel_sample("one tap, bilinear", 2, 4, 1, bilinear),
          kernel_sample("many models", 17, 1, 3, zoh),
          kernel_sample("no taps", 2, 3, 0, zoh),
          kernel_sample("no states", 2, 0, 5, zoh),
          kernel_sample("no models", 0, 3, 5, bilinear)};
}

Samples mode_samples() {
  Samples samples;
  for (const auto discretization : {Discretization::zoh, Discretization::bilinear}) {
    Sample sample = sample_of(discretization == Discretization::zoh ? "zoh" : "bilinear", 3, 5);
    sample.call = [discretization](const Tensors& in) {
      return Tensors{discretize({in[0], in[1], in[2], in[3], discretization})};
    };
    samples.push_back(sample);
  }
  return samples;
}

Samples step_samples() {
  const auto sample = [](const char* name, int64_t B, int64_t steps, int64_t channels, int64_t pairs) {
    return Sample{.inputs = {real({B, steps, channels}), real({4, pairs, channels}, -0.6, 0.6), real({channels}),
                             real({B, pairs, 2, channels})},
                  .call = [](const Tensors& in) { return ssm_steps(in[0], in[1], in[2], in[3]); },
                  .name = name};
  };
  return {sample("one token", 2, 1, 5, 3), sample("several tokens", 2, 9, 35, 4), sample("no tokens", 2, 0, 5, 3),
          sample("no sequences", 0, 3, 5, 3), sample("no states", 2, 3, 5, 0)};
}

void check(const Op& op, const DiagonalSsm& ssm) {
  op.require_float("log_dt", ssm.log_dt);
  op.require(ssm.log_dt.ndim() == 1, "log_dt", ssm.log_dt, "[C]");
  op.require_like("C", ssm.C, "log_dt", ssm.log_dt);
  const int64_t channels = ssm.log_dt.dim(0), pairs = ssm.C.ndim() == 3 ? ssm.C.dim(1) : -1;
  op.require(ssm.C.ndim() == 3 && ssm.C.dim(0) == channels && ssm.C.dim(2) == 2, "C", ssm.C, "[C,N,2] for log_dt {}",
             ssm.log_dt);
  for (const auto& [name, tensor] : {std::pair("log_A_real", &ssm.log_A_real), std::pair("A_imag", &ssm.A_imag)}) {
    op.require_like(name, *tensor, "log_dt", ssm.log_dt);
    op.require(tensor->shape() == Shape{channels, pairs}, name, *tensor, "[C,N] for C {}", ssm.C);
  }
}

struct Parameters {
  Saved log_dt, C, log_A_real, A_imag;
  Discretization discretization;

  explicit Parameters(const DiagonalSsm& ssm)
      : log_dt(ssm.log_dt.contiguous()),
        C(ssm.C.contiguous()),
        log_A_real(ssm.log_A_real.contiguous()),
        A_imag(ssm.A_imag.contiguous()),
        discretization(ssm.discretization) {}
  template <class T>
  kernels::SsmParameters<T> of() const {
    return {log_dt->data<T>(), C->data<T>(), log_A_real->data<T>(), A_imag->data<T>(),
            C->dim(0),         C->dim(1),    discretization};
  }
};

Tensors pull_back(const Parameters& parameters, const Tensor& dkernel) {
  const Tensor dlog_dt = empty_like(parameters.log_dt), dC = empty_like(parameters.C);
  const Tensor dlog_A_real = empty_like(parameters.log_A_real), dA_imag = empty_like(parameters.A_imag);
  Tensor workspace;
  kernel_op.launch<kernels::VandermondeBwd>(dkernel, [&]<class T>(kernels::VandermondeBwd<T>& a) {
    workspace = empty({a.workspace_size(dkernel.dim(0), dkernel.dim(1))}, dkernel.dtype(), dkernel.device());
    a = {.ssm = parameters.of<T>(),
         .dkernel = dkernel.data<T>(),
         .dlog_dt = dlog_dt.data<T>(),
         .dC = dC.data<T>(),
         .dlog_A_real = dlog_A_real.data<T>(),
         .dA_imag = dA_imag.data<T>(),
         .length = dkernel.dim(1),
         .workspace = workspace.data<T>()};
  });
  return {dlog_dt, dC, dlog_A_real, dA_imag};
}

}  // namespace

Tensor vandermonde(const DiagonalSsm& ssm, int64_t length) {
  check(kernel_op, ssm);
  kernel_op.require(length >= 0, "length", length, "at least 0");
  const Parameters parameters(ssm);
  const Tensor kernel = empty({ssm.log_dt.dim(0), length}, ssm.log_dt.dtype(), ssm.log_dt.device());
  kernel_op.launch<kernels::VandermondeFwd>(kernel, [&]<class T>(kernels::VandermondeFwd<T>& a) {
    a = {parameters.of<T>(), kernel.data<T>(), length};
  });
  return kernel_op.record(kernel, {ssm.log_dt, ssm.C, ssm.log_A_real, ssm.A_imag},
                          [parameters](const Tensor& dkernel) { return pull_back(parameters, dkernel); });
}

Tensor discretize(const DiagonalSsm& ssm) {
  check(discretize_op, ssm);
  const Parameters parameters(ssm);
  Tensor modes = empty({4, ssm.C.dim(1), ssm.C.dim(0)}, ssm.C.dtype(), ssm.C.device());
  discretize_op.launch<kernels::Discretize>(modes, [&]<class T>(kernels::Discretize<T>& a) {
    a = {parameters.of<T>(), modes.data<T>()};
  });
  return modes;
}

Tensors ssm_steps(const Tensor& u, const Tensor& modes, const Tensor& D, const Tensor& state) {
  const Op& op = steps_op;
  op.require_float("u", u);
  op.require(u.ndim() == 3, "u", u, "[B,T,C]");
  const int64_t B = u.dim(0), channels = u.dim(2), pairs = modes.ndim() == 3 ? modes.dim(1) : -1;
  op.require_like("modes", modes, "u", u);
  op.require(modes.ndim() == 3 && modes.dim(0) == 4 && modes.dim(2) == channels, "modes", modes,
             "[4,N,C], C = last axis of u {}", u);
  op.require_like("D", D, "u", u);
  op.require(D.shape() == Shape{channels}, "D", D, "[C], C = last axis of u {}", u);
  op.require_like("state", state, "u", u);
  op.require(state.shape() == Shape{B, pairs, 2, channels}, "state", state, "[B,N,2,C] for u {} and modes {}", u,
             modes);
  const Tensor y = empty_like(u), after = state.clone(), input = u.contiguous(), table = modes.contiguous();
  const Tensor skip = D.contiguous();
  op.launch<kernels::SsmSteps>(u, [&]<class T>(kernels::SsmSteps<T>& a) {
    a = {input.data<T>(), table.data<T>(), skip.data<T>(), y.data<T>(), after.data<T>(), B, u.dim(1), channels, pairs};
  });
  return {y, after};
}

}  // namespace margay
