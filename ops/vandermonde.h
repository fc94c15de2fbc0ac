#pragma once
#include "engine/op.h"

namespace margay {

/// How the continuous system h' = A h + u is sampled at steps dt: with the input held constant between samples, or by
/// the trapezoidal rule.
enum class Discretization : uint8_t { zoh, bilinear };

/// Diagonal state-space models with one input and one output each, in conjugate pairs of complex states of which one is
/// stored. Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models",
/// arXiv:2206.11893. For each model c and pair n:
///
///     A = -exp(log_A_real[c,n]) + i A_imag[c,n],   dt = exp(log_dt[c]),   B = 1
///     zoh:       Abar = e^(dt A),                          Cbar = C (e^(dt A) - 1) / A
///     bilinear:  Abar = (1 + dt A / 2) / (1 - dt A / 2),   Cbar = C dt / (1 - dt A / 2)
struct DiagonalSsm {
  Tensor log_dt;      ///< [C]
  Tensor C;           ///< [C,N,2], real and imaginary parts
  Tensor log_A_real;  ///< [C,N]
  Tensor A_imag;      ///< [C,N]
  Discretization discretization = Discretization::zoh;
};

/// The convolution kernel of every model: K[c,l] = 2 Re sum over n of Cbar[c,n] Abar[c,n]^l for l < length; [C,
/// length], contiguous. Powers are started anew from f64 every 256 taps. Throws OpError for shapes or dtypes that do
/// not fit.
Tensor vandermonde(const DiagonalSsm& ssm, int64_t length);

/// The sampled system for ssm_steps: [4,N,C] with the real and imaginary parts of Abar and of 2 Cbar. No gradient.
Tensor discretize(const DiagonalSsm& ssm);

/// The same models as a recurrence: h[t] = Abar h[t-1] + u[t], y[t] = Re sum of (2 Cbar) h[t] + D u[t].
/// u [B,T,C]; modes [4,N,C] as made by discretize(); D [C]; state [B,N,2,C], h before the first token.
/// Returns y [B,T,C] and the state after the last token. No gradient.
/// Throws OpError for shapes or dtypes that do not fit.
Tensors ssm_steps(const Tensor& u, const Tensor& modes, const Tensor& D, const Tensor& state);

namespace kernels {

/// The parameters of C models with N pairs.
template <class T>
struct SsmParameters {
  const T *log_dt, *C, *log_A_real, *A_imag;
  int64_t channels, pairs;
  Discretization discretization;
};

template <class T>
struct VandermondeFwd {
  SsmParameters<T> ssm;
  T* kernel;
  int64_t length;
};
/// All gradients are made.
template <class T>
struct VandermondeBwd {
  SsmParameters<T> ssm;
  const T* dkernel;
  T *dlog_dt, *dC, *dlog_A_real, *dA_imag;
  int64_t length;
  T* workspace;  // a row of weighted cotangents for each model

  static int64_t workspace_size(int64_t channels, int64_t length) { return channels * length; }
};
template <class T>
struct Discretize {
  SsmParameters<T> ssm;
  T* modes;
};
template <class T>
struct SsmSteps {
  const T *u, *modes, *D;
  T *y, *state;  // the state is changed in place
  int64_t B, steps, channels, pairs;
};

template <class T>
void run(Cpu, const VandermondeFwd<T>&);
template <class T>
void run(Cuda, const VandermondeFwd<T>&);
template <class T>
void run(Cpu, const VandermondeBwd<T>&);
template <class T>
void run(Cuda, const VandermondeBwd<T>&);
template <class T>
void run(Cpu, const Discretize<T>&);
template <class T>
void run(Cuda, const Discretize<T>&);
template <class T>
void run(Cpu, const SsmSteps<T>&);
template <class T>
void run(Cuda, const SsmSteps<T>&);

}  // namespace kernels
}  // namespace margay
