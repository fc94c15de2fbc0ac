#include "ops/vandermonde.h"
#include "engine/parallel.h"

#include <array>
#include <complex>

#include "ops/cpu/simd.h"

namespace margay::kernels {
namespace {

using Number = std::complex<double>;
using simd::Vec;

// Products and quotients of finite numbers: the operators of std::complex spend most of their time on infinities.
Number product(Number a, Number b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}
Number times_conj(Number a, Number b) { return product(a, std::conj(b)); }
Number quotient(Number a, Number b) { return times_conj(a, b) / std::norm(b); }

/// One pair of states, sampled; f64 whatever the parameters are, because powers multiply relative errors.
struct Mode {
  Number A, z, Abar, Cbar;  // z = dt A
  Number C, factor;         // bilinear: factor = 1 / (1 - z / 2)
  double dt = 0;
};

/// e^z - 1 without cancellation near 0.
Number expm1(Number z) {
  const double half_sine = std::sin(z.imag() / 2), real = std::expm1(z.real());
  return {real * std::cos(z.imag()) - 2 * half_sine * half_sine, (real + 1) * std::sin(z.imag())};
}

template <class T>
Mode mode_of(const SsmParameters<T>& s, int64_t channel, int64_t pair) {
  const int64_t at = channel * s.pairs + pair;
  Mode m;
  m.dt = std::exp(static_cast<double>(s.log_dt[channel]));
  m.A = {-std::exp(static_cast<double>(s.log_A_real[at])), static_cast<double>(s.A_imag[at])};
  m.C = {static_cast<double>(s.C[2 * at]), static_cast<double>(s.C[2 * at + 1])};
  m.z = m.dt * m.A;
  if (s.discretization == Discretization::zoh) {
    const Number rise = expm1(m.z);
    m.Abar = rise + 1.0;
    m.Cbar = product(m.C, quotient(rise, m.A));
  } else {
    m.factor = quotient(1, 1.0 - 0.5 * m.z);
    m.Abar = product(1.0 + 0.5 * m.z, m.factor);
    m.Cbar = m.dt * product(m.C, m.factor);
  }
  return m;
}

constexpr int64_t kRestart = 256;  // taps after which powers are started anew

/// Powers whose squared size is below this count as zero; they would soon be subnormal, which is slow.
template <class T>
constexpr double kVanishing = sizeof(T) == 4 ? 1e-60 : 1e-280;
constexpr double kForever = 1e18;

/// The powers of one number at successive taps, a vector of them at a time.
template <class T>
struct Powers {
  Vec<T> first_re, first_im;  // of the first lanes
  Vec<T> re, im;
  T step_re, step_im;  // from one vector to the next
  Number start = 1, restart;

  Powers() = default;
  explicit Powers(Number base) {
    Number power = 1;
    for (int lane = 0; lane < Vec<T>::size; ++lane, power = product(power, base)) {
      first_re.v[lane] = static_cast<T>(power.real());
      first_im.v[lane] = static_cast<T>(power.imag());
    }
    step_re = static_cast<T>(power.real());
    step_im = static_cast<T>(power.imag());
    restart = power;
    for (int64_t taps = Vec<T>::size; taps < kRestart; taps *= 2) restart = product(restart, restart);
  }
  /// Sets the vector to factor * base^(0, 1, ...) of this stretch.
  void begin(Number factor) {
    const Number scale = product(factor, start);
    const Vec<T> scale_re = static_cast<T>(scale.real()), scale_im = static_cast<T>(scale.imag());
    re = first_re * scale_re - first_im * scale_im;
    im = first_re * scale_im + first_im * scale_re;
  }
  void next() {
    const Vec<T> old = re;
    re = old * step_re - im * step_im;
    im = old * step_im + im * step_re;
  }
  /// Moves on by a stretch of kRestart taps.
  void next_stretch() {
    start = product(start, restart);
    if (std::norm(start) < kVanishing<T>) start = 0;
  }
};

/// Several modes of one model side by side, since each waits for its own last product.
template <class T, size_t G>
struct Group {
  std::array<Mode, G> modes;
  std::array<Powers<T>, G> powers;
  double alive = 0;  // taps until the powers of all modes have vanished

  Group(const SsmParameters<T>& s, int64_t channel, int64_t first) {
    for (size_t g = 0; g < G; ++g) {
      const auto pair = first + static_cast<int64_t>(g);
      if (pair < s.pairs) modes[g] = mode_of(s, channel, pair);
      powers[g] = Powers<T>(modes[g].Abar);
      const double size = std::norm(modes[g].Abar);
      alive = std::max(alive, size < 1 ? 1 + std::log(kVanishing<T>) / std::log(size) : kForever);
    }
  }
  /// Calls body(begin, end) for every stretch until the powers vanish; `factor(mode)` is put before them.
  template <class Factor, class Body>
  void for_stretches(int64_t length, const Factor& factor, const Body& body) {
    const auto taps = static_cast<int64_t>(std::min(alive, static_cast<double>(length)));
    for (int64_t begin = 0; begin < taps; begin += kRestart) {
      for (size_t g = 0; g < G; ++g) powers[g].begin(factor(modes[g]));
      body(begin, std::min(taps, begin + kRestart));
      for (size_t g = 0; g < G; ++g) powers[g].next_stretch();
    }
  }
};

/// kernel += 2 Re sum of Cbar Abar^l over the modes of a group.
template <class T>
void add_modes(const SsmParameters<T>& s, int64_t channel, int64_t first, int64_t length, T* kernel) {
  constexpr size_t G = 4;
  Group<T, G> group(s, channel, first);
  auto& powers = group.powers;
  group.for_stretches(
      length, [](const Mode& m) { return 2.0 * m.Cbar; },
      [&](int64_t begin, int64_t end) {
        for (int64_t l = begin; l < end; l += Vec<T>::size) {
          Vec<T> sum = Vec<T>::load(kernel + l, end - l);
#pragma GCC unroll 4
          for (size_t g = 0; g < G; ++g) {
            sum += powers[g].re;
            powers[g].next();
          }
          sum.store(kernel + l, end - l);
        }
      });
}

/// Gradients of the loss with respect to the sampled system, as dL/dRe + i dL/dIm.
struct SampledGradient {
  Number Abar, Cbar;
};

// With g = dL/dK, P = sum of g[l] Abar^l and Q = sum of l g[l] Abar^(l-1): dCbar = 2 conj(P), dAbar = 2 conj(Cbar Q).
// `weighted` holds (l + 1) g[l + 1], so that Q meets the same powers as P.
template <class T>
std::array<SampledGradient, 2> sampled_gradients(Group<T, 2>& group, const T* g, const T* weighted, int64_t length) {
  auto& powers = group.powers;
  std::array<std::array<Vec<T>, 4>, 2> sums;
  for (auto& sum : sums) sum.fill(T(0));
  group.for_stretches(
      length, [](const Mode&) { return Number(1); },
      [&](int64_t begin, int64_t end) {
        for (int64_t l = begin; l < end; l += Vec<T>::size) {
          const Vec<T> direct = Vec<T>::load(g + l, end - l), later = Vec<T>::load(weighted + l, end - l);
#pragma GCC unroll 2
          for (size_t m = 0; m < 2; ++m) {
            sums[m][0] += direct * powers[m].re;
            sums[m][1] += direct * powers[m].im;
            sums[m][2] += later * powers[m].re;
            sums[m][3] += later * powers[m].im;
            powers[m].next();
          }
        }
      });
  std::array<SampledGradient, 2> result;
  for (size_t m = 0; m < 2; ++m) {
    const auto total = [&](size_t i) { return static_cast<double>(simd::reduce_add(sums[m][i])); };
    const Number P(total(0), total(1)), Q(total(2), total(3));
    result[m] = {2.0 * std::conj(product(group.modes[m].Cbar, Q)), 2.0 * std::conj(P)};
  }
  return result;
}

// From the sampled system to the parameters: for w = f(x) holomorphic, dx = dw conj(f'(x)); for a real x, its real
// part. zoh, Abar = e^z, Cbar = C (e^z - 1) / A with z = dt A:
//   dAbar/dz = Abar;  dCbar/dC = (Abar - 1) / A;  dCbar/dz = C Abar / A;  dCbar/dA = -Cbar / A at fixed z.
// bilinear, Abar = (1 + z/2) w, Cbar = C dt w with w = 1 / (1 - z/2), dw/dz = w^2 / 2:
//   dAbar/dz = w^2;  dCbar/dC = dt w;  dCbar/dz = C dt w^2 / 2;  dCbar/d(dt) = C w at fixed z.
template <class T>
void store_gradients(const VandermondeBwd<T>& a, int64_t at, const Mode& m, const SampledGradient& d, double& dlog_dt) {
  Number dC, dz, dA;
  double ddt = 0;
  if (a.ssm.discretization == Discretization::zoh) {
    dC = times_conj(d.Cbar, quotient(expm1(m.z), m.A));
    dz = times_conj(d.Abar, m.Abar) + times_conj(d.Cbar, quotient(product(m.C, m.Abar), m.A));
    dA = -times_conj(d.Cbar, quotient(m.Cbar, m.A));
  } else {
    const Number w = m.factor, square = product(w, w);
    dC = m.dt * times_conj(d.Cbar, w);
    dz = times_conj(d.Abar, square) + 0.5 * m.dt * times_conj(d.Cbar, product(m.C, square));
    ddt = times_conj(d.Cbar, product(m.C, w)).real();
  }
  dA += dz * m.dt;
  ddt += times_conj(dz, m.A).real();
  dlog_dt += ddt * m.dt;
  a.dC[2 * at] = static_cast<T>(dC.real());
  a.dC[2 * at + 1] = static_cast<T>(dC.imag());
  a.dlog_A_real[at] = static_cast<T>(dA.real() * m.A.real());
  a.dA_imag[at] = static_cast<T>(dA.imag());
}

}  // namespace

template <class T>
void run(Cpu cpu, const VandermondeFwd<T>& a) {
  parallel_for(cpu, a.ssm.channels, [&](int64_t channel) {
    T* const kernel = a.kernel + channel * a.length;
    std::fill_n(kernel, a.length, T(0));
    for (int64_t first = 0; first < a.ssm.pairs; first += 4) add_modes(a.ssm, channel, first, a.length, kernel);
  });
}

template <class T>
void run(Cpu cpu, const VandermondeBwd<T>& a) {
  const SsmParameters<T>& s = a.ssm;
  parallel_for(cpu, s.channels, [&](int64_t channel) {
    const T* const g = a.dkernel + channel * a.length;
    T* const weighted = a.workspace + channel * a.length;
    for (int64_t l = 0; l + 1 < a.length; ++l) weighted[l] = static_cast<T>(l + 1) * g[l + 1];
    if (a.length > 0) weighted[a.length - 1] = 0;
    double dlog_dt = 0;
    for (int64_t first = 0; first < s.pairs; first += 2) {
      Group<T, 2> group(s, channel, first);
      const auto gradients = sampled_gradients(group, g, weighted, a.length);
      for (int64_t m = 0; m < std::min<int64_t>(2, s.pairs - first); ++m)
        store_gradients(a, channel * s.pairs + first + m, group.modes[static_cast<size_t>(m)],
                        gradients[static_cast<size_t>(m)], dlog_dt);
    }
    a.dlog_dt[channel] = static_cast<T>(dlog_dt);
  });
}

template <class T>
void run(Cpu, const Discretize<T>& a) {
  const int64_t size = a.ssm.pairs * a.ssm.channels;
  for (int64_t pair = 0; pair < a.ssm.pairs; ++pair)
    for (int64_t channel = 0; channel < a.ssm.channels; ++channel) {
      const Mode m = mode_of(a.ssm, channel, pair);
      T* const out = a.modes + pair * a.ssm.channels + channel;
      out[0] = static_cast<T>(m.Abar.real());
      out[size] = static_cast<T>(m.Abar.imag());
      out[2 * size] = static_cast<T>(2 * m.Cbar.real());
      out[3 * size] = static_cast<T>(2 * m.Cbar.imag());
    }
}

template <class T>
void run(Cpu cpu, const SsmSteps<T>& a) {
  constexpr int64_t lanes = Vec<T>::size;
  const int64_t vectors = (a.channels + lanes - 1) / lanes, plane = a.pairs * a.channels;
  parallel_for(cpu, a.B * vectors, [&](int64_t piece) {
    const int64_t b = piece / vectors, channel = piece % vectors * lanes, left = a.channels - channel;
    T* const state = a.state + 2 * b * plane + channel;
    for (int64_t t = b * a.steps; t < (b + 1) * a.steps; ++t) {
      const Vec<T> u = Vec<T>::load(a.u + t * a.channels + channel, left);
      Vec<T> y = u * Vec<T>::load(a.D + channel, left);
      for (int64_t pair = 0; pair < a.pairs; ++pair) {
        const T* const mode = a.modes + pair * a.channels + channel;
        T *const h_re = state + 2 * pair * a.channels, *const h_im = h_re + a.channels;
        const Vec<T> A_re = Vec<T>::load(mode, left), A_im = Vec<T>::load(mode + plane, left);
        const Vec<T> old_re = Vec<T>::load(h_re, left), old_im = Vec<T>::load(h_im, left);
        const Vec<T> re = old_re * A_re - old_im * A_im + u, im = old_re * A_im + old_im * A_re;
        y += re * Vec<T>::load(mode + 2 * plane, left) - im * Vec<T>::load(mode + 3 * plane, left);
        re.store(h_re, left);
        im.store(h_im, left);
      }
      y.store(a.y + t * a.channels + channel, left);
    }
  });
}

template void run(Cpu, const VandermondeFwd<float>&);
template void run(Cpu, const VandermondeFwd<double>&);
template void run(Cpu, const VandermondeBwd<float>&);
template void run(Cpu, const VandermondeBwd<double>&);
template void run(Cpu, const Discretize<float>&);
template void run(Cpu, const Discretize<double>&);
template void run(Cpu, const SsmSteps<float>&);
template void run(Cpu, const SsmSteps<double>&);

}  // namespace margay::kernels
