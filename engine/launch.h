#pragma once
#include "engine/op.h"
#include "engine/parallel.h"
#include "engine/profiler.h"

namespace margay {

/// How `Op::launch` finds the kernel. Only sources that launch kernels include this header: it alone depends on the
/// backends that were built.
namespace launching {

#ifdef MARGAY_CUDA
using Devices = Types<Cpu, Cuda>;
#else
using Devices = Types<Cpu>;
#endif

inline Cpu context(Types<Cpu>, const Tensor&) { return Cpu{num_threads()}; }
inline Cuda context(Types<Cuda>, const Tensor& like) {
  return Cuda{backend(like.device()).stream(), like.device().index};
}

template <class Arguments, class D, class T, class Fill>
bool on_dtype(const Tensor& like, const Fill& fill) {
  if constexpr (requires(Arguments & a) { run(D{}, a); }) {
    if (like.dtype() != dtype_of<T>) return false;
    Arguments arguments{};
    fill.template operator()<T>(arguments);
    run(context(Types<D>{}, like), arguments);
    return true;
  } else {
    return false;
  }
}

template <template <class> class Args, class D, class Fill, class... Ts>
bool on_dtypes(const Tensor& like, const Fill& fill, Types<Ts...>) {
  return (... || on_dtype<Args<Ts>, D, Ts>(like, fill));
}

template <template <class> class Args, class D, class Fill>
bool on_device(const Tensor& like, const Fill& fill) {
  if (like.device().type != D::type) return false;
  if constexpr (requires { typename Args<float>::dtypes; })
    return on_dtypes<Args, D>(like, fill, typename Args<float>::dtypes{});
  else
    return on_dtypes<Args, D>(like, fill, typename D::dtypes{});
}

template <template <class> class Args, class Fill, class... Ds>
bool on_devices(const Tensor& like, const Fill& fill, Types<Ds...>) {
  return (... || on_device<Args, Ds>(like, fill));
}

}  // namespace launching

template <template <class> class Args, class Fill>
void Op::launch(const Tensor& like, const Fill& fill) const {
  const OpScope scope(name_);
  const ProfileScope profile(name_, ScopeKind::op);
  if (!launching::on_devices<Args>(like, fill, launching::Devices{}))
    fail("device", "one with a kernel for it", describe(like));
}

}  // namespace margay
