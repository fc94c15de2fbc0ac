#include "ops/vandermonde.h"

#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"

namespace margay::kernels {
namespace {

/// A complex number; f64 whatever the parameters are, because powers multiply relative errors.
struct Number {
  double re = 0, im = 0;
};
__device__ Number operator+(Number a, Number b) { return {a.re + b.re, a.im + b.im}; }
__device__ Number operator-(Number a) { return {-a.re, -a.im}; }
__device__ Number operator*(Number a, Number b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
__device__ Number operator*(double a, Number b) { return {a * b.re, a * b.im}; }
__device__ Number conj(Number a) { return {a.re, -a.im}; }
__device__ Number times_conj(Number a, Number b) { return a * conj(b); }
__device__ Number quotient(Number a, Number b) { return 1 / (b.re * b.re + b.im * b.im) * times_conj(a, b); }
/// e^z - 1 without cancellation near 0.
__device__ Number expm1(Number z) {
  const double half_sine = std::sin(z.im / 2), real = std::expm1(z.re);
  return {real * std::cos(z.im) - 2 * half_sine * half_sine, (real + 1) * std::sin(z.im)};
}
__device__ Number power(Number base, int64_t exponent) {
  Number result{1, 0};
  for (; exponent > 0; exponent /= 2, base = base * base)
    if (exponent % 2 == 1) result = result * base;
  return result;
}

/// One pair of states, sampled.
struct Mode {
  Number A, z, Abar, Cbar;  // z = dt A
  Number C, factor;         // bilinear: factor = 1 / (1 - z / 2)
  double dt = 0;

  template <class T>
  __device__ Mode(const SsmParameters<T>& s, int64_t channel, int64_t pair) {
    using Real = acc_t<T>;
    const int64_t at = channel * s.pairs + pair;
    const auto real = [](const T* p) { return static_cast<double>(Real(*p)); };
    dt = std::exp(real(s.log_dt + channel));
    A = {-std::exp(real(s.log_A_real + at)), real(s.A_imag + at)};
    C = {real(s.C + 2 * at), real(s.C + 2 * at + 1)};
    z = dt * A;
    if (s.discretization == Discretization::zoh) {
      const Number rise = expm1(z);
      Abar = rise + Number{1, 0};
      Cbar = C * quotient(rise, A);
    } else {
      factor = quotient({1, 0}, Number{1, 0} + -0.5 * z);
      Abar = (Number{1, 0} + 0.5 * z) * factor;
      Cbar = dt * (C * factor);
    }
  }
};

constexpr int kPairs = 64;  // in shared memory at a time

// A block per model and kThreads taps; each thread raises every mode to its own tap.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) forward(VandermondeFwd<T> a, int64_t blocks_per_channel) {
  using A = acc_t<T>;
  __shared__ double shared[4][kPairs];  // Abar and Cbar, real and imaginary parts
  const SsmParameters<T>& s = a.ssm;
  for (int64_t block = blockIdx.x; block < s.channels * blocks_per_channel; block += gridDim.x) {
    const int64_t channel = block / blocks_per_channel;
    const int64_t tap = block % blocks_per_channel * cuda::kThreads + threadIdx.x;
    double sum = 0;
    for (int64_t first = 0; first < s.pairs; first += kPairs) {
      const int64_t count = min(int64_t{kPairs}, s.pairs - first);
      __syncthreads();  // who reads the modes is done
      if (threadIdx.x < count) {
        const Mode mode(s, channel, first + threadIdx.x);
        shared[0][threadIdx.x] = mode.Abar.re;
        shared[1][threadIdx.x] = mode.Abar.im;
        shared[2][threadIdx.x] = mode.Cbar.re;
        shared[3][threadIdx.x] = mode.Cbar.im;
      }
      __syncthreads();
      for (int64_t n = 0; n < count; ++n) {
        const Number Abar{shared[0][n], shared[1][n]}, Cbar{shared[2][n], shared[3][n]};
        sum += 2 * (Cbar * power(Abar, tap)).re;
      }
    }
    if (tap < a.length) a.kernel[channel * a.length + tap] = T(static_cast<A>(sum));
  }
}

/// Gradients of the loss with respect to the sampled system, as dL/dRe + i dL/dIm.
struct SampledGradient {
  Number Abar, Cbar;
};

// Formulas: ops/cpu/vandermonde.cpp. Returns what the pair adds to dlog_dt.
template <class T>
__device__ double store_gradients(const VandermondeBwd<T>& a, int64_t at, const Mode& m, const SampledGradient& d) {
  using A = acc_t<T>;
  Number dC, dz, dA;
  double ddt = 0;
  if (a.ssm.discretization == Discretization::zoh) {
    dC = times_conj(d.Cbar, quotient(expm1(m.z), m.A));
    dz = times_conj(d.Abar, m.Abar) + times_conj(d.Cbar, quotient(m.C * m.Abar, m.A));
    dA = -times_conj(d.Cbar, quotient(m.Cbar, m.A));
  } else {
    const Number w = m.factor, square = w * w;
    dC = m.dt * times_conj(d.Cbar, w);
    dz = times_conj(d.Abar, square) + 0.5 * m.dt * times_conj(d.Cbar, m.C * square);
    ddt = times_conj(d.Cbar, m.C * w).re;
  }
  dA = dA + m.dt * dz;
  ddt += times_conj(dz, m.A).re;
  a.dC[2 * at] = T(static_cast<A>(dC.re));
  a.dC[2 * at + 1] = T(static_cast<A>(dC.im));
  a.dlog_A_real[at] = T(static_cast<A>(dA.re * m.A.re));
  a.dA_imag[at] = T(static_cast<A>(dA.im));
  return ddt * m.dt;
}

// A block per model. With g = dL/dK, P = sum of g[l] Abar^l and Q = sum of l g[l] Abar^(l-1): dCbar = 2 conj(P),
// dAbar = 2 conj(Cbar Q).
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) backward(VandermondeBwd<T> a) {
  using A = acc_t<T>;
  const SsmParameters<T>& s = a.ssm;
  for (int64_t channel = blockIdx.x; channel < s.channels; channel += gridDim.x) {
    const T* const g = a.dkernel + channel * a.length;
    double dlog_dt = 0;
    for (int64_t pair = 0; pair < s.pairs; ++pair) {
      const Mode mode(s, channel, pair);
      const Number step = power(mode.Abar, cuda::kThreads);
      Number now = power(mode.Abar, threadIdx.x), P, Q;
      for (int64_t l = threadIdx.x; l < a.length; l += cuda::kThreads, now = now * step) {
        P = P + static_cast<double>(A(g[l])) * now;
        if (l + 1 < a.length) Q = Q + static_cast<double>(l + 1) * static_cast<double>(A(g[l + 1])) * now;
      }
      P = {cuda::block_reduce<cuda::Sum>(P.re), cuda::block_reduce<cuda::Sum>(P.im)};
      Q = {cuda::block_reduce<cuda::Sum>(Q.re), cuda::block_reduce<cuda::Sum>(Q.im)};
      if (threadIdx.x == 0)
        dlog_dt += store_gradients(a, channel * s.pairs + pair, mode, {2 * conj(mode.Cbar * Q), 2 * conj(P)});
    }
    if (threadIdx.x == 0) a.dlog_dt[channel] = T(static_cast<A>(dlog_dt));
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kThreads) sample(Discretize<T> a) {
  using A = acc_t<T>;
  const int64_t size = a.ssm.pairs * a.ssm.channels;
  for (int64_t i = cuda::first_index(); i < size; i += cuda::index_step()) {
    const Mode m(a.ssm, i % a.ssm.channels, i / a.ssm.channels);
    a.modes[i] = T(static_cast<A>(m.Abar.re));
    a.modes[size + i] = T(static_cast<A>(m.Abar.im));
    a.modes[2 * size + i] = T(static_cast<A>(2 * m.Cbar.re));
    a.modes[3 * size + i] = T(static_cast<A>(2 * m.Cbar.im));
  }
}

// A thread per model of a sequence; neighbouring threads have neighbouring channels.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) steps(SsmSteps<T> a) {
  using A = acc_t<T>;
  const int64_t plane = a.pairs * a.channels;
  for (int64_t i = cuda::first_index(); i < a.B * a.channels; i += cuda::index_step()) {
    const int64_t b = i / a.channels, channel = i % a.channels;
    T* const state = a.state + 2 * b * plane + channel;
    for (int64_t t = b * a.steps; t < (b + 1) * a.steps; ++t) {
      const A u(a.u[t * a.channels + channel]);
      A y = u * A(a.D[channel]);
      for (int64_t pair = 0; pair < a.pairs; ++pair) {
        const T* const mode = a.modes + pair * a.channels + channel;
        T *const h_re = state + 2 * pair * a.channels, *const h_im = h_re + a.channels;
        const A A_re(mode[0]), A_im(mode[plane]), old_re(*h_re), old_im(*h_im);
        const A re = old_re * A_re - old_im * A_im + u, im = old_re * A_im + old_im * A_re;
        y += re * A(mode[2 * plane]) - im * A(mode[3 * plane]);
        *h_re = T(re);
        *h_im = T(im);
      }
      a.y[t * a.channels + channel] = T(y);
    }
  }
}

unsigned capped(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, int64_t{1} << 20)); }

}  // namespace

template <class T>
void run(Cuda cuda, const VandermondeFwd<T>& a) {
  const int64_t blocks_per_channel = (a.length + cuda::kThreads - 1) / cuda::kThreads;
  const unsigned blocks = capped(a.ssm.channels * blocks_per_channel);
  if (blocks > 0) cuda::launch(cuda, dim3(blocks), dim3(cuda::kThreads), forward<T>, a, blocks_per_channel);
}

template <class T>
void run(Cuda cuda, const VandermondeBwd<T>& a) {
  const unsigned blocks = capped(a.ssm.channels);
  if (blocks > 0) cuda::launch(cuda, dim3(blocks), dim3(cuda::kThreads), backward<T>, a);
}

template <class T>
void run(Cuda cuda, const Discretize<T>& a) {
  cuda::launch_elements(cuda, a.ssm.pairs * a.ssm.channels, sample<T>, a);
}

template <class T>
void run(Cuda cuda, const SsmSteps<T>& a) {
  cuda::launch_elements(cuda, a.B * a.channels, steps<T>, a);
}

template void run(Cuda, const VandermondeFwd<float>&);
template void run(Cuda, const VandermondeFwd<double>&);
template void run(Cuda, const VandermondeFwd<bf16>&);
template void run(Cuda, const VandermondeBwd<float>&);
template void run(Cuda, const VandermondeBwd<double>&);
template void run(Cuda, const VandermondeBwd<bf16>&);
template void run(Cuda, const Discretize<float>&);
template void run(Cuda, const Discretize<double>&);
template void run(Cuda, const Discretize<bf16>&);
template void run(Cuda, const SsmSteps<float>&);
template void run(Cuda, const SsmSteps<double>&);
template void run(Cuda, const SsmSteps<bf16>&);

}  // namespace margay::kernels
